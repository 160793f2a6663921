//! Options that start no training: `--plan`, `--doctor`, `--help`, and wrong usage.

use crate::support::programs::{run as run_program, *};

#[test]
fn plan_and_doctor_start_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), shapes());
    let run = dir.path().join("run");
    let plan = train(&recipe, &run, &["--plan"]).done();
    assert!(["pretrain", "finetune", "MiB"].iter().all(|w| plan.out.contains(w)), "{plan:?}");
    assert!(!run.exists(), "a plan writes nothing");
    assert!(run_program("train", ["--doctor"]).done().out.contains("cpu"));
}

#[test]
fn help_is_complete_and_wrong_usage_is_2() {
    for (program, words) in [
        (
            "train",
            &["--out", "--device", "--set", "--resume", "--plan", "--json", "--stop-after", "--seed", "--doctor"][..],
        ),
        ("evaluate", &["--annotations", "--images", "--detections", "--batch", "--device"]),
        ("detect", &["--out", "--score-threshold", "--device"]),
        ("dataset", &["check", "stats", "draw", "shapes"]),
    ] {
        let help = run_program(program, ["--help"]).done().out;
        for word in words {
            assert!(help.contains(word), "{program} --help: {word} is missing");
        }
        if program != "dataset" {
            assert!(help.contains("Example"), "{program} --help: no example");
        }
        let wrong = run_program(program, ["--no-such-option"]);
        assert!(wrong.code == Some(2) && wrong.err.contains("--no-such-option"), "{wrong:?}");
    }
    for args in [
        &["train", "--device", "abacus"][..],
        &["train", "--stop-after", "soon"],
        &["train", "--json"],
        &["evaluate"],
        &["detect", "x.safetensors"],
        &["detect", "x.safetensors", "a.png", "--score-threshold", "2"],
    ] {
        assert_eq!(run_program(args[0], &args[1..]).code, Some(2), "{args:?}");
    }
}
