//! Runs the programs as a user does, and holds a recipe that trains in seconds.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use upres::data::shapes::{ShapesOptions, generate};

/// Exit code and output of a finished program.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).expect("programs write UTF-8");
        Ran { code: o.status.code(), out: text(&o.stdout), err: text(&o.stderr) }
    }
}

impl Ran {
    /// Asserts that the program succeeded and did not panic.
    #[track_caller]
    pub fn done(self) -> Ran {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// Asserts that the program failed as users are promised: exit code 1, and one error line, the last one, which
    /// contains all of `parts`. Lines about the progress of a training run may precede it.
    #[track_caller]
    pub fn complains(self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "want exit code 1: {self:?}");
        let lines: Vec<&str> = self.err.lines().collect();
        let Some((last, before)) = lines.split_last() else { panic!("no word about it: {self:?}") };
        assert!(last.starts_with("error: "), "{self:?}");
        assert!(!before.iter().any(|l| l.contains("error") || l.contains("panicked")), "want one line: {self:?}");
        for part in parts {
            assert!(last.contains(part), "want {part:?} in: {last}");
        }
    }
}

/// A program of this crate.
pub fn command(program: &str) -> Command {
    let path = match program {
        "train" => env!("CARGO_BIN_EXE_train"),
        "evaluate" => env!("CARGO_BIN_EXE_evaluate"),
        "detect" => env!("CARGO_BIN_EXE_detect"),
        "convert" => env!("CARGO_BIN_EXE_convert"),
        "dataset" => env!("CARGO_BIN_EXE_dataset"),
        other => panic!("no program {other}"),
    };
    let mut command = Command::new(path);
    command.env("RUST_BACKTRACE", "1").stdin(std::process::Stdio::null());
    command
}

/// Runs a program to its end.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Ran {
    command(program).args(args).output().expect("the program starts").into()
}

/// `train RECIPE --out OUT …`
pub fn train(recipe: &Path, out: &Path, more: &[&str]) -> Ran {
    let (recipe, out) = (recipe.as_os_str(), out.as_os_str());
    run("train", [recipe, "--out".as_ref(), out].into_iter().chain(more.iter().map(|s| s.as_ref())))
}

/// The built-in data set with twelve training and six validation pictures, made once per test binary. Tests only read
/// it.
pub fn shapes() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shapes-{}", env!("CARGO_CRATE_NAME")));
        let options = ShapesOptions { train: 12, val: 6, size: (64, 64), objects: (1, 3), ..ShapesOptions::default() };
        generate(&folder, &options).unwrap();
        folder
    })
}

/// A temporary folder for one test, with a copy of the data set in `data/`.
pub fn folder_with_data() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_folder(shapes(), &dir.path().join("data"));
    dir
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Optimizer steps of [`tiny_recipe`].
pub const STEPS: u64 = 200;

/// A recipe of two stages that uses everything a checkpoint holds or an augmentation draws: momentum, averaged weights,
/// batch norm statistics, accumulated gradients, flips, crops and colour jitter. `data` is a folder like that of
/// [`shapes`].
pub fn tiny_recipe(data: &Path) -> String {
    let data = data.display();
    format!(
        r#"name = "tiny"
seed = 5

[model]
backbone = {{ kind = "resnet18", width = 0.125 }}
fpn = {{ channels = 16 }}
rpn = {{ channels = 16, anchor_scales = [4.0], samples = 32, train_nms_pre = 100, train_max = 50, test_nms_pre = 100, test_max = 50 }}
box_head = {{ kind = "shared_2fc", fc_channels = 32, samples = 32, sampling_ratio = 2 }}

[data]
train = {{ annotations = "{data}/annotations/train.json", images = "{data}/images/train" }}
val = {{ annotations = "{data}/annotations/val.json", images = "{data}/images/val" }}

[[stage]]
name = "pretrain"
steps = 120
images_per_step = 4
micro_batch = 2
resize = {{ kind = "fit_crop", size = 64 }}
colour_jitter = {{ brightness = 0.2, hue = 0.05 }}
ema = 0.9
eval_every_epochs = 20
checkpoint_every_steps = 9
optimizer = {{ kind = "adamw", lr = 0.002, weight_decay = 0.05 }}
schedule = {{ warmup_steps = 5 }}

[[stage]]
name = "finetune"
steps = 80
images_per_step = 2
micro_batch = 2
batch_norm = "frozen"
frozen_stages = 1
resize = {{ kind = "keep_ratio", long = 96, short = 96 }}
ema = 0.9
eval_every_epochs = 0
checkpoint_every_steps = 7
optimizer = {{ lr = 0.01 }}
schedule = {{ kind = "cosine", warmup_steps = 2 }}
"#
    )
}

/// Writes [`tiny_recipe`] for a data folder into `dir`.
pub fn write_recipe(dir: &Path, data: &Path) -> PathBuf {
    let path = dir.join("tiny.toml");
    fs::write(&path, tiny_recipe(data)).unwrap();
    path
}

/// A finished, never interrupted run of [`tiny_recipe`], made once per test binary. Tests only read it.
pub fn finished_run() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run-{}", env!("CARGO_CRATE_NAME")));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let recipe = write_recipe(&folder, shapes());
        train(&recipe, &folder.join("run"), &[]).done();
        folder.join("run")
    })
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The newest checkpoint of a run.
pub fn last(run: &Path) -> PathBuf {
    run.join("checkpoints/last.safetensors")
}
