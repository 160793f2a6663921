//! The rooms of the house: imports go down the list of rooms, and no files import each other in a circle.
//!
//! An import is a path in a `use` line, or one in code that begins with `crate`, `super`, `self` or `upres`. A `mod`
//! line is none, and neither is a call of a file's own child (`cpu::forward` in an op's `mod.rs`): a folder may use its
//! parts. Paths inside macros are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The rooms of `src`, from the ground up. A file may import from its own room and from the floors below it.
///
/// docs/architecture.md says what each is for. Rooms to come have their floor already: `dist` (ranks) above `tensor`,
/// `advise` (recipes from data) beside `plan`, `export` beside `detect`.
const FLOORS: &[&[&str]] = &[
    &["error"],
    &["format", "output"],
    &["dtype", "philox"],
    &["cpu"],
    &["device"],
    &["tensor"],
    &["tape"],
    &["ops"],
    &["nn"],
    &["detection"],
    &["models"],
    &["data"],
    &["eval"],
    &["weights"],
    &["recipe"],
    &["engine"],
    &["run"],
    &["report", "plan", "detect"],
    &["train"],
    &["bin"],
];

fn floor(room: &str) -> usize {
    let floor = FLOORS.iter().position(|rooms| rooms.contains(&room));
    floor.unwrap_or_else(|| panic!("src/{room}: a room without a floor: add it to FLOORS, as low as its imports allow"))
}

/// A source file of `src`.
struct File {
    /// Relative to `src`, with slashes.
    name: String,
    /// Its module: `["ops", "nms"]` for ops/nms/mod.rs; `["bin", "train"]` for a program.
    module: Vec<String>,
    /// Modules that are written inside it, such as `tests`.
    inner: Vec<Vec<String>>,
    /// Absolute paths of what it imports, without `crate`.
    imports: BTreeSet<Vec<String>>,
}

impl File {
    fn read(src: &Path, path: &Path) -> File {
        let name = path.strip_prefix(src).unwrap().to_string_lossy().replace('\\', "/");
        let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(String::from).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        if module == ["lib"] {
            module.clear();
        }
        let text = std::fs::read_to_string(path).unwrap();
        let syntax = syn::parse_file(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut imports =
            Imports { module: module.clone(), children: BTreeSet::new(), inner: vec![], found: BTreeSet::new() };
        imports.children = children(&syntax.items);
        imports.visit_file(&syntax);
        File { name, module, inner: imports.inner, imports: imports.found }
    }

    fn room(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }
}

/// Names of the modules that items declare.
fn children(items: &[syn::Item]) -> BTreeSet<String> {
    let names =
        items.iter().filter_map(|item| if let syn::Item::Mod(m) = item { Some(m.ident.to_string()) } else { None });
    names.collect()
}

/// Collects the imports of a file.
struct Imports {
    /// The module that is being read, which may be inside the file.
    module: Vec<String>,
    /// Modules that it declares.
    children: BTreeSet<String>,
    inner: Vec<Vec<String>>,
    found: BTreeSet<Vec<String>>,
}

impl Imports {
    /// Notes a path, if it names something of this crate.
    fn add(&mut self, path: &[String], is_use: bool) {
        let mut rest = path;
        let mut base = match path[0].as_str() {
            "crate" | "upres" => vec![],
            "self" | "super" => self.module.clone(),
            child if is_use && self.children.contains(child) => {
                self.found.insert([&self.module[..], path].concat());
                return;
            }
            _ => return,
        };
        while let [first, others @ ..] = rest
            && ["crate", "upres", "self", "super"].contains(&first.as_str())
        {
            if first == "super" {
                base.pop();
            }
            rest = others;
        }
        self.found.insert([&base[..], rest].concat());
    }

    fn add_tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.add(&with(&name.ident), true),
            syn::UseTree::Rename(name) => self.add(&with(&name.ident), true),
            syn::UseTree::Glob(_) => self.add(before, true),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(before, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if names.len() > 1 {
            self.add(&names, false);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in path)` and `pub(super)` import nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let Some((_, items)) = &item.content else { return };
        self.module.push(item.ident.to_string());
        self.inner.push(self.module.clone());
        let outer = std::mem::replace(&mut self.children, children(items));
        items.iter().for_each(|item| self.visit_item(item));
        self.children = outer;
        self.module.pop();
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// All files of `src`, and for each of them the indices of those that it imports from.
fn house() -> (Vec<File>, Vec<BTreeSet<usize>>) {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    paths.sort();
    let files: Vec<File> = paths.iter().map(|path| File::read(&src, path)).collect();
    let mut owner: BTreeMap<&[String], usize> = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        for module in [&file.module].into_iter().chain(&file.inner) {
            owner.insert(module, i);
        }
    }
    let edges = files.iter().enumerate().map(|(i, file)| {
        let owners = file.imports.iter().filter_map(|path| {
            // The longest prefix that is a module; what lies in the crate's root is a macro or a re-export.
            (1..=path.len()).rev().find_map(|n| owner.get(&path[..n]).copied())
        });
        owners.filter(|&target| target != i).collect()
    });
    let edges = edges.collect();
    (files, edges)
}

#[test]
fn imports_go_down() {
    let (files, edges) = house();
    let mut upward = Vec::new();
    for (file, targets) in files.iter().zip(&edges).filter(|(file, _)| file.room() != "lib") {
        for target in targets.iter().map(|&t| &files[t]).filter(|target| target.room() != file.room()) {
            if floor(target.room()) >= floor(file.room()) {
                upward.push(format!("{} imports from {}", file.name, target.name));
            }
        }
    }
    assert!(upward.is_empty(), "{} imports do not go down:\n{}", upward.len(), upward.join("\n"));
    let rooms: BTreeSet<&str> = files.iter().map(File::room).filter(|room| *room != "lib").collect();
    let listed: BTreeSet<&str> = FLOORS.iter().flat_map(|rooms| rooms.iter().copied()).collect();
    assert_eq!(rooms, listed, "FLOORS lists the rooms that there are");
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let (files, edges) = house();
    let reached: Vec<BTreeSet<usize>> = (0..files.len()).map(|i| reachable(&edges, i)).collect();
    let mut lines = Vec::new();
    for (f, targets) in edges.iter().enumerate() {
        let circle = targets.iter().filter(|&&t| reached[t].contains(&f));
        lines.extend(circle.map(|&t| format!("{} imports from {}", files[f].name, files[t].name)));
    }
    assert!(lines.is_empty(), "files import each other in a circle:\n{}", lines.join("\n"));
}

/// The files that a file imports from, directly or through others.
fn reachable(edges: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(f) = next.pop() {
        next.extend(edges[f].iter().filter(|&&t| reached.insert(t)));
    }
    reached
}
