//! The registry against the source tree: an op that lacks a part fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use upres::ops::{Gradient, OPS};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The doc comment of `pub fn <name>` without its slashes, or `None` if there is no such function.
fn doc_of(source: &str, name: &str) -> Option<String> {
    let at = source.find(&format!("\npub fn {name}("))?;
    let above: Vec<&str> = source[..at].lines().rev().take_while(|l| l.starts_with("///")).collect();
    Some(above.iter().rev().map(|l| l.trim_start_matches("///").trim()).collect::<Vec<_>>().join("\n"))
}

/// The words between `before` and `after` in a source.
fn words<'a>(source: &'a str, before: &'a str, after: &'a str) -> impl Iterator<Item = &'a str> {
    let tails = source.split(before).skip(1).map(str::trim_start);
    let heads = tails.filter_map(move |tail| tail.split_once(after).map(|(word, _)| word));
    heads.filter(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// Faults in the names an op shows to plans, profiles and errors. Each public function of its folder must enter its own
/// name or the op's (`conv2d_live` enters `conv2d`, say), and each error begins with the name that was entered.
fn naming_faults(name: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let entered: BTreeSet<&str> = words(source, "enter(\"", "\")").collect();
    if !entered.contains(name) {
        faults.push(format!("no `enter(\"{name}\")`: plans and profiles do not show it"));
    }
    let functions: BTreeSet<&str> = words(source, "\npub fn ", "(").collect();
    faults.extend(entered.difference(&functions).map(|w| format!("enters \"{w}\", which is no function of it")));
    let errors: BTreeSet<&str> = words(source, "\"", ": ").chain(words(source, "Error::value(\"", "\"")).collect();
    if !errors.contains(name) {
        faults.push(format!("no error begins with \"{name}: \""));
    }
    faults.extend(errors.difference(&entered).map(|w| format!("an error begins with \"{w}: \"")));
    faults
}

/// The missing parts of one op.
fn faults(name: &str, gradient: Gradient) -> Vec<String> {
    let source = read(root().join(format!("src/ops/{name}/mod.rs")));
    let mut faults = Vec::new();
    let mut expect = |there: bool, what: String| {
        if !there {
            faults.push(format!("{name}: {what}"));
        }
    };
    match doc_of(&source, name) {
        None => expect(false, format!("no `pub fn {name}`: function, folder and entry share one name")),
        Some(doc) => {
            for label in ["Shapes:", "Saves:", "Gradient:", "Cost:", "Errors:", "Reference:"] {
                // Two short labels may share a line.
                expect(doc.contains(label), format!("its doc comment has no `{label}`"));
            }
            expect(!doc.starts_with("Shapes:"), "its doc comment does not begin with what it computes".into());
        }
    }
    expect(source.contains(&format!("name: \"{name}\"")), format!("INFO is not named \"{name}\""));
    for fault in naming_faults(name, source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()) {
        expect(false, fault);
    }
    expect(source.starts_with("//! "), "its module says nothing of itself".into());
    expect(source.contains("on_device!"), "no dispatch: the plan device would compute".into());
    // image_normalize casts pixels to floats itself.
    let any_float = source.contains("expect_float") && name != "image_normalize";
    expect(!any_float || source.contains("wide::needed"), "takes 16 bits, and has no `wide::run` for the CPU".into());
    match gradient {
        Gradient::Yes => {
            expect(source.contains("impl Backward for "), "says it has a gradient, but no rule".into());
            let record = source.contains("tape.record(") || source.contains("tape.record_all(");
            expect(record, "its rule is never recorded".into());
        }
        Gradient::No(reason) => {
            expect(!source.contains("impl Backward for "), "has a rule, but says that it has no gradient".into());
            expect(reason.len() > 10, "gives no reason for having no gradient".into());
        }
    }
    expect(root().join(format!("src/ops/{name}/cpu.rs")).is_file(), "no cpu.rs".into());
    expect(root().join(format!("src/ops/{name}/cuda.rs")).is_file(), "no cuda.rs".into());
    // Convolutions and matrix products are cuDNN's and cuBLASLt's; their bias is kernels/bias.cu.
    let library = ["conv2d", "linear"].contains(&name);
    expect(library || root().join(format!("kernels/{name}.cu")).is_file(), format!("no kernels/{name}.cu"));
    let arms = (source.matches("cpu =>").count(), source.matches("cuda =>").count());
    expect(arms.0 == arms.1, format!("{} arms for the CPU, {} for a GPU", arms.0, arms.1));
    let cases = root().join(format!("tests/cases/{name}.rs"));
    if cases.is_file() {
        let cases = read(cases);
        expect(cases.contains("CASES: &[Case] = &["), "tests/cases has no list of shapes for it".into());
        expect(cases.contains("everywhere("), "its cases do not run in a planned step".into());
        expect(cases.contains("#[test]"), "its cases are used by no test".into());
        let listed = read(root().join("tests/cases/mod.rs")).contains(&format!("mod {name};"));
        expect(listed, "tests/cases/mod.rs does not name it".into());
    } else {
        expect(false, format!("no tests/cases/{name}.rs"));
    }
    faults
}

#[test]
fn every_op_is_whole() {
    let faults: Vec<String> = OPS.iter().flat_map(|op| faults(op.name, op.gradient)).collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_op_is_registered_once() {
    let names: BTreeSet<&str> = OPS.iter().map(|op| op.name).collect();
    let twice: Vec<_> = OPS.iter().enumerate().filter(|(i, op)| OPS[..*i].iter().any(|o| o.name == op.name)).collect();
    assert!(twice.is_empty(), "registered twice: {twice:?}");
    for entry in std::fs::read_dir(root().join("src/ops")).expect("src/ops") {
        let entry = entry.expect("an entry of src/ops");
        let name = entry.file_name().into_string().expect("a name");
        if entry.path().is_dir() && name != "common" {
            assert!(names.contains(name.as_str()), "src/ops/{name} is not in OPS");
        }
    }
}

/// One op is one place: a public function of an op's folder is the op, or another entry of it whose name begins with
/// the op's (`conv2d_live` computes what `conv2d` does, and skips padding).
#[test]
fn a_public_function_of_an_op_is_the_op() {
    let mut passengers = Vec::new();
    for op in OPS {
        let source = read(root().join(format!("src/ops/{}/mod.rs", op.name)));
        let functions = words(&source, "\npub fn ", "(").filter(|f| !f.starts_with(op.name));
        passengers.extend(functions.map(|f| format!("src/ops/{}/mod.rs: {f}", op.name)));
    }
    assert!(passengers.is_empty(), "ops of their own, or no ops:\n{}", passengers.join("\n"));
}

#[test]
fn names_are_read_from_the_source() {
    let good = r#"
pub fn pool(x: &Tensor) { let _op = x.device().enter("pool"); x.dims("pool: x")?; Error::value("pool", "k") }
pub fn helper(x: &Tensor) { let _op = x.device().enter("helper"); x.dims("helper: x")?; }
"#;
    assert_eq!(naming_faults("pool", good), [""; 0]);
    let wrong = |from: &str, to: &str| naming_faults("pool", &good.replace(from, to)).join(", ");
    assert!(wrong("enter(\"pool\")", "enter(\"conv\")").contains("no `enter(\"pool\")`"));
    assert_eq!(wrong("\"pool: x\"", "\"conv: x\""), "an error begins with \"conv: \"");
    assert_eq!(wrong("value(\"pool\"", "value(\"conv\""), "an error begins with \"conv: \"");
    assert_eq!(wrong("enter(\"helper\")", "enter(\"pool\")"), "an error begins with \"helper: \"");
}

/// Tests the checks themselves: a source that lacks a part is detected.
#[test]
fn doc_comments_are_read_whole() {
    let source = "//! x\n/// a\n/// b\npub fn f(x: u8) {}\n/// c\npub fn other() {}\n";
    assert_eq!(doc_of(source, "f").as_deref(), Some("a\nb"));
    assert_eq!(doc_of(source, "other").as_deref(), Some("c"));
    assert_eq!(doc_of(source, "oth"), None);
}
