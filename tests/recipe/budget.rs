//! `train --memory` changes each stage as little as necessary to fit, by the ladder documented at `budget::fit`.

use std::fs;
use std::path::Path;

use crate::support::programs::{run as run_program, *};
use serde_json::Value;
use upres::device::Device;
use upres::plan::Planner;
use upres::plan::budget::{Budget, Fitted, MemorySize, check, fit, largest};
use upres::recipe::Recompute::{self, Blocks, None as Keep, Norms};
use upres::recipe::StatePrecision::{self, Auto, Bf16, F32};
use upres::recipe::{Recipe, Resize};
use upres::run::event::{Event, Observer};
use upres::train::options::TrainOptions;
use upres::train::session;

/// A way to train a stage: `micro_batch`, `recompute`, `eval_batch`.
type Way = (usize, Recompute, usize);

/// The tiny recipe with changes, and its planner.
fn planned(dir: &Path, edit: impl Fn(&mut Recipe), replace: &[(&str, &str)]) -> (Recipe, Planner) {
    let text = replace.iter().fold(tiny_recipe(shapes()), |text, (from, to)| text.replace(from, to));
    let file = dir.join("tiny.toml");
    let mut recipe = Recipe::parse(&text, &file, &[]).unwrap();
    edit(&mut recipe);
    recipe.check(&file).unwrap();
    let planner = Planner::new(&recipe, &file, &Device::cpu()).unwrap();
    (recipe, planner)
}

/// Keeps only the first stage, with steps of 8 images in passes of 4.
fn one_stage(recipe: &mut Recipe) {
    recipe.stages.truncate(1);
    (recipe.stages[0].images_per_step, recipe.stages[0].micro_batch) = (8, 4);
}

fn changed(recipe: &Recipe, index: usize, (micro_batch, again, eval_batch): Way) -> Recipe {
    let mut recipe = recipe.clone();
    let stage = &mut recipe.stages[index];
    (stage.micro_batch, stage.recompute, stage.eval_batch) = (micro_batch, again, Some(eval_batch));
    recipe
}

/// Like [`changed`], with optimizer state stored as `state`.
fn with_state(recipe: &Recipe, index: usize, state: StatePrecision) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.stages[index].optimizer.state = state;
    recipe
}

/// The bytes a stage needs, by planning all of it.
fn needs(planner: &mut Planner, recipe: &Recipe, index: usize, way: Way) -> usize {
    planner.stage(&changed(recipe, index, way), index).unwrap().1.total_bytes()
}

fn way_of(fitted: &Fitted, index: usize) -> Way {
    let stage = &fitted.recipe.stages[index];
    (stage.micro_batch, stage.recompute, stage.eval_batch())
}

/// The number of bytes that an error message names in brackets.
fn named_bytes(error: &str) -> Vec<usize> {
    error.split('(').skip(1).filter_map(|rest| rest.split_once(" bytes)")?.0.parse().ok()).collect()
}

/// Compares [`fit`] for a one-stage recipe with a search through all ways by whole plans, at every budget where the
/// choice changes. Returns the chosen ways, by falling budget.
fn climb(recipe: &Recipe, planner: &mut Planner, ladder: &[(usize, Recompute)]) -> Vec<(usize, Recompute)> {
    climb_with_state(recipe, planner, ladder).into_iter().map(|(way, _)| way).collect()
}

/// Like [`climb`], but the ways include the type of the optimizer state.
fn climb_with_state(
    recipe: &Recipe,
    planner: &mut Planner,
    ladder: &[(usize, Recompute)],
) -> Vec<((usize, Recompute), StatePrecision)> {
    let written = recipe.stages[0].optimizer.state;
    let mut all_with = |state| -> Vec<(Way, StatePrecision, usize)> {
        let recipe = with_state(recipe, 0, state);
        let ways = ladder.iter().flat_map(|&(micro, again)| (1..=micro).rev().map(move |eval| (micro, again, eval)));
        ways.map(|way| (way, state, needs(planner, &recipe, 0, way))).collect()
    };
    let (mut all, in_bf16) = (all_with(written), all_with(Bf16));
    let least_of = |ways: &[(Way, StatePrecision, usize)]| ways.iter().map(|(_, _, need)| *need).min().unwrap();
    let least_in_bf16 = least_of(&in_bf16);
    if written == Auto {
        all.extend(in_bf16);
    }
    let mut budgets: Vec<usize> = all.iter().flat_map(|(_, _, need)| [*need, need - 1]).collect();
    budgets.extend([least_in_bf16, least_in_bf16 - 1]);
    budgets.sort_unstable_by(|a, b| b.cmp(a));
    let least = least_of(&all);
    let mut chosen = Vec::new();
    for budget in budgets {
        let got = fit(planner, recipe, Some(Budget::Given(budget)));
        let Some((way, state, need)) = all.iter().find(|(_, _, need)| *need <= budget) else {
            let error = got.unwrap_err().to_string();
            let set = format!("--set stage.{}.optimizer.state=auto", recipe.stages[0].name);
            let (named, hint) = match (written == F32, least_in_bf16 <= budget) {
                (false, _) => (vec![least], !error.contains("--set")),
                (true, true) => (vec![least], error.ends_with(&format!("; {set} would make it fit"))),
                (true, false) => (vec![least, least_in_bf16], error.contains(&format!("; with {set} "))),
            };
            assert!(budget < least && named_bytes(&error) == named && hint, "{budget}: {error}");
            continue;
        };
        let got = got.unwrap();
        assert_eq!(way_of(&got, 0), *way, "{budget}: it needs {need}");
        let stage = &got.recipe.stages[0];
        assert_eq!(stage.optimizer.state, *state, "{budget}");
        let (_, plans) = planner.stage(&got.recipe, 0).unwrap();
        assert_eq!(plans.total_bytes(), *need, "what the run will reserve");
        assert_eq!(got.stages[0].changes.is_empty(), (*way, *state) == (all[0].0, all[0].1));
        assert_eq!(stage.images_per_step, recipe.stages[0].images_per_step);
        assert_eq!(stage.effective_lr(), recipe.stages[0].effective_lr());
        chosen.push(((way.0, way.1), *state));
    }
    chosen.dedup();
    chosen
}

/// Every way with f32 state comes before any with bf16. If the recipe says bf16, there is no other.
#[test]
fn state_in_bf16_is_the_last_way() {
    let dir = tempfile::tempdir().unwrap();
    let ladder = [4, 2, 1].map(|n| [(n, Keep), (n, Norms), (n, Blocks)]).concat();
    let edit = |state| move |r: &mut Recipe| (one_stage(r), r.stages[0].optimizer.state = state).0;
    let (recipe, mut planner) = planned(dir.path(), edit(Auto), &[]);
    let chosen = climb_with_state(&recipe, &mut planner, &ladder);
    let in_f32: Vec<_> = ladder.iter().map(|way| (*way, Auto)).collect();
    assert_eq!(chosen[..in_f32.len()], in_f32, "every rung in f32");
    assert!(chosen[in_f32.len()..].iter().all(|(_, state)| *state == Bf16), "{chosen:?}");
    assert_eq!(chosen.last(), Some(&((1, Blocks), Bf16)), "{chosen:?}");
    // The fitted recipe passes the check. The error for the original recipe names the key to set.
    let f32_least = needs(&mut planner, &recipe, 0, (1, Blocks, 1));
    let budget = Budget::Given(f32_least - 1);
    let fitted = fit(&mut planner, &recipe, Some(budget)).unwrap();
    let stage = &fitted.stages[0];
    let change = stage.changes.last().unwrap();
    assert_eq!((change.key, &*change.was, &*change.is), ("optimizer.state", "auto", "bf16"));
    assert!(stage.why[0].contains("; optimizer.state = \"bf16\", was \"auto\": it needs "), "{stage:?}");
    let last = stage.why.last().unwrap();
    assert!(last.contains("rounded to bf16") && last.ends_with("the result is not that of f32"), "{last}");
    check(&mut planner, &fitted.recipe, budget, 0).unwrap();
    let error = check(&mut planner, &recipe, budget, 0).unwrap_err().to_string();
    assert!(error.contains("--set stage.pretrain.optimizer.state=bf16"), "{error}");
    assert_eq!(Recipe::parse(&fitted.recipe.to_toml(), "r.toml", &[]).unwrap(), fitted.recipe);

    let (recipe, mut planner) = planned(dir.path(), edit(Bf16), &[]);
    assert_eq!(climb_with_state(&recipe, &mut planner, &ladder), ladder.iter().map(|w| (*w, Bf16)).collect::<Vec<_>>());
}

#[test]
fn batch_norm_keeps_as_many_images_as_fit() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), one_stage, &[]);
    let ladder = [4, 2, 1].map(|n| [(n, Keep), (n, Norms), (n, Blocks)]).concat();
    assert_eq!(climb(&recipe, &mut planner, &ladder), ladder, "every rung is reached");
    // A stage that rematerialises blocks already keeps doing so.
    let (recipe, mut planner) = planned(
        dir.path(),
        |r| {
            one_stage(r);
            r.stages[0].recompute = Recompute::Blocks;
        },
        &[],
    );
    assert_eq!(climb(&recipe, &mut planner, &[(4, Blocks), (2, Blocks), (1, Blocks)]).len(), 3);
}

#[test]
fn smaller_batches_come_first_where_batch_norm_does_not_see_them() {
    let dir = tempfile::tempdir().unwrap();
    let frozen = |recipe: &mut Recipe| {
        recipe.stages.remove(0);
        recipe.stages[0].frozen_stages = -1;
        (recipe.stages[0].resize, recipe.stages[0].eval_resize) = (fit_crop(256), Some(fit_crop(64)));
        recipe.init.weights = Some("weights.safetensors".into());
        (recipe.stages[0].images_per_step, recipe.stages[0].micro_batch) = (12, 6);
    };
    let (recipe, mut planner) = planned(dir.path(), frozen, &[]);
    let batches = [6, 4, 3, 2, 1];
    // Frozen batch norm keeps no outputs that could be rematerialised, so "norms" saves nothing.
    let ladder = [batches.map(|n| [(n, Keep), (n, Norms)]).concat(), batches.map(|n| (n, Blocks)).to_vec()].concat();
    let chosen = climb(&recipe, &mut planner, &ladder);
    assert_eq!(chosen[..5], batches.map(|n| (n, Keep)));
    assert_eq!(chosen.last(), Some(&(1, Blocks)), "and then blocks are computed again");
    let budget = Some(Budget::Given(needs(&mut planner, &recipe, 0, (6, Keep, 6)) - 1));
    let fitted = fit(&mut planner, &recipe, budget).unwrap();
    assert!(fitted.notes().all(|note| !note.contains("batch norm")), "{:?}", fitted.stages);

    // A model without batch norm, whatever the stage says about it.
    let swin = [("kind = \"resnet18\", width = 0.125", "kind = \"swin_t\", width = 0.34")];
    let (recipe, mut planner) = planned(dir.path(), one_stage, &swin);
    let batches = [4, 2, 1];
    let ladder = [batches.map(|n| [(n, Keep), (n, Norms)]).concat(), batches.map(|n| (n, Blocks)).to_vec()].concat();
    let chosen = climb(&recipe, &mut planner, &ladder);
    assert_eq!(chosen[..6], ladder[..6], "layer norm and GELU can be made again");
    assert_eq!(chosen.last(), Some(&(1, Blocks)), "and then blocks are computed again");
}

#[test]
fn no_budget_and_a_large_one_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), |_| {}, &[]);
    for budget in [None, Some(Budget::Given(usize::MAX)), Budget::free(&Device::cpu()).unwrap()] {
        let fitted = fit(&mut planner, &recipe, budget).unwrap();
        assert_eq!(fitted.recipe, recipe);
        assert_eq!(fitted.notes().count(), 0);
    }
    assert_eq!(Budget::free(&Device::cpu()).unwrap(), None, "the CPU has no limit");
}

#[test]
fn what_is_changed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), one_stage, &[]);
    let mut say = |way: Way| {
        let budget = Budget::Given(needs(&mut planner, &recipe, 0, way));
        fit(&mut planner, &recipe, Some(budget)).unwrap().notes().cloned().collect::<Vec<_>>()
    };
    let again = say((4, Blocks, 4));
    assert_eq!(again.len(), 1);
    assert!(again[0].starts_with("pretrain: recompute = \"blocks\", was \"none\": it needs "), "{again:?}");
    assert!(again[0].contains("; --memory gives "), "{again:?}");
    let smaller = say((2, Keep, 2));
    assert!(smaller[0].starts_with("pretrain: micro_batch = 2, was 4: it needs "), "{smaller:?}");
    assert_eq!(smaller[1], "pretrain: batch norm sees 2 images instead of 4: the result is not the recipe's");
    let both = say((1, Blocks, 1));
    assert!(
        both[0].starts_with("pretrain: recompute = \"blocks\", was \"none\"; micro_batch = 1, was 4: "),
        "{both:?}"
    );
    assert!(both[1].contains("batch norm sees 1 image instead of 4"), "{both:?}");
}

/// The memory that an error asks for is enough for every stage, and one byte less is not.
#[test]
fn the_smallest_budget_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), |_| {}, &[]);
    let refused =
        |planner: &mut Planner, bytes| fit(planner, &recipe, Some(Budget::Given(bytes))).unwrap_err().to_string();
    let error = refused(&mut planner, 1 << 20);
    let [least, with_auto] = named_bytes(&error)[..] else { panic!("{error}") };
    let stage = error.strip_prefix("stage ").and_then(|rest| rest.split_once(": needs at least ")).unwrap().0;
    assert!(error.contains("micro_batch = 1 with recompute = \"blocks\"; --memory gives 1.0 MiB"), "{error}");
    assert!(error.contains(", less than the ") && error.contains("stay between steps; with --set stage."), "{error}");
    fit(&mut planner, &recipe, Some(Budget::Given(least))).unwrap();
    let error = refused(&mut planner, least - 1);
    assert!(error.starts_with(&format!("stage {stage}: needs at least")), "{error}");
    assert!(error.contains(&format!("({least} bytes)")) && !error.contains("between steps"), "{error}");
    // Both stages changed as the error for the smaller budget says.
    let auto = (0..2).fold(recipe, |recipe, index| with_state(&recipe, index, Auto));
    assert!(with_auto < least);
    fit(&mut planner, &auto, Some(Budget::Given(with_auto))).unwrap();
    fit(&mut planner, &auto, Some(Budget::Given(with_auto - 1))).map(drop).unwrap_err();
}

#[test]
fn the_largest_batch_is_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), |_| {}, &[]);
    let given = Budget::Given(40 << 20);
    for index in 0..2 {
        let found = largest(&mut planner, &recipe, index, given).unwrap();
        assert!(found.micro_batch > 4 && found.micro_batch_recompute > found.micro_batch, "{found:?}");
        for (n, again) in [(found.micro_batch, Keep), (found.micro_batch_recompute, Blocks)] {
            let mut any = recipe.clone();
            any.stages[index].images_per_step = n * (n + 1);
            assert!(needs(&mut planner, &any, index, (n, again, 1)) <= given.bytes());
            assert!(needs(&mut planner, &any, index, (n + 1, again, 1)) > given.bytes());
        }
    }
    let none = largest(&mut planner, &recipe, 0, Budget::Given(1)).unwrap();
    assert_eq!((none.micro_batch, none.micro_batch_recompute), (0, 0));
}

/// Evaluation at four times the side: the training recipe stays, with as many evaluation images at once as fit.
fn large_evaluations(recipe: &mut Recipe) {
    one_stage(recipe);
    recipe.stages[0].eval_resize = Some(fit_crop(256));
}

fn fit_crop(size: u32) -> Resize {
    Resize::FitCrop { size, jitter: [1.0, 1.0] }
}

#[test]
fn only_evaluations_become_smaller_where_that_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), large_evaluations, &[]);
    let want = needs(&mut planner, &recipe, 0, (4, Keep, 3));
    assert!(want < needs(&mut planner, &recipe, 0, (4, Keep, 4)));
    for (budget, way) in [(want, (4, Keep, 3)), (want - 1, (4, Keep, 2))] {
        let fitted = fit(&mut planner, &recipe, Some(Budget::Given(budget))).unwrap();
        assert_eq!(way_of(&fitted, 0), way);
        let note = format!("pretrain: eval_batch = {}, was 4: it needs ", way.2);
        assert!(fitted.notes().count() == 1 && fitted.stages[0].why[0].starts_with(&note), "{:?}", fitted.stages[0]);
    }
    let ladder = [4, 2, 1].map(|n| [(n, Keep), (n, Norms), (n, Blocks)]).concat();
    assert_eq!(climb(&recipe, &mut planner, &ladder)[0], (4, Keep));
}

struct Notes(Vec<String>);

impl Observer for Notes {
    fn event(&mut self, _: &Event) -> upres::Result<()> {
        Ok(())
    }

    fn note(&mut self, line: &str) {
        self.0.push(line.into());
    }
}

/// Checks the arena's high-water mark of a real run, not of a plan.
#[test]
fn a_run_stays_within_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), one_stage, &[]);
    let recipe = with_state(&recipe, 0, Auto);
    let mut used = Vec::new();
    let ways = [(4, Keep, 4), (4, Norms, 4), (4, Blocks, 4), (2, Keep, 2), (1, Blocks, 1)].map(|way| (way, Auto));
    for (way, state) in ways.into_iter().chain([((1, Blocks, 1), Bf16)]) {
        let budget = needs(&mut planner, &with_state(&recipe, 0, state), 0, way);
        let fitted = fit(&mut planner, &recipe, Some(Budget::Given(budget))).unwrap();
        let kept = planner.stage(&fitted.recipe, 0).unwrap().1.persistent_bytes;
        let device = Device::cpu();
        let options = TrainOptions { checkpoints: dir.path().into(), stop_after: Some(2), ..TrainOptions::default() };
        let file = dir.path().join("tiny.toml");
        session::train(&fitted.recipe, &file, &planner.data, &device, &options, &mut Notes(Vec::new())).unwrap();
        assert!(device.arena_high_water() > 0 && kept + device.arena_high_water() <= budget, "{way:?}");
        used.push(kept + device.arena_high_water());
    }
    assert!(used.is_sorted_by(|a, b| a > b), "{used:?}");
}

fn log(run: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).collect()
}

/// The choice is written to the run's folder, and a resumed run uses it.
#[test]
fn a_run_keeps_its_choice() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), |_| {}, &[]);
    let file = write_recipe(dir.path(), shapes());
    let out = dir.path().join("run");
    // The second stage needs less and stays unchanged.
    let budget = needs(&mut planner, &recipe, 0, (2, Keep, 2)) - 1;
    let memory = budget.to_string();
    let fitted = fit(&mut planner, &recipe, Some(Budget::Given(budget))).unwrap();
    let ran = train(&file, &out, &["--memory", &memory, "--stop-after", "2"]).done();
    assert!(fitted.notes().count() > 0 && fitted.notes().all(|note| ran.err.contains(note)), "{}", ran.err);
    let written = Recipe::read(out.join("recipe.toml"), &[]).unwrap();
    assert_eq!(written, fitted.recipe);
    let stage = &log(&out, "stage")[0];
    let reserved = stage["persistent_bytes"].as_u64().unwrap() + stage["arena_bytes"].as_u64().unwrap();
    assert!(reserved as usize <= budget);

    let resume = |more: &[&str]| run_program("train", [&["--resume", out.to_str().unwrap()], more].concat());
    resume(&["--stop-after", "3"]).done();
    assert_eq!(Recipe::read(out.join("recipe.toml"), &[]).unwrap(), written, "without --memory");
    resume(&["--memory", &memory, "--stop-after", "4"]).done();
    assert_eq!(Recipe::read(out.join("recipe.toml"), &[]).unwrap(), written, "with the same --memory");
    let less = planner.stage(&fitted.recipe, 0).unwrap().1.total_bytes() - 1;
    let less = less.to_string();
    let refused = resume(&["--memory", &less, "--stop-after", "5"]);
    let error = refused.err.lines().last().unwrap().to_string();
    refused.complains(&["stage pretrain: needs ", "--memory gives", "goes on as it began", "--set stage.pretrain."]);
    assert_eq!(Recipe::read(out.join("recipe.toml"), &[]).unwrap(), written, "a refusal changes nothing");
    // The budget that the refusal proposes is enough.
    let sets = error.split(" or add ").nth(1).unwrap();
    let mut args: Vec<&str> = sets.split(' ').collect();
    args.extend(["--memory", &less, "--stop-after", "5"]);
    resume(&args).done();
    let steps: Vec<u64> = log(&out, "end").iter().map(|e| e["global_step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [5]);
    resume(&["--memory", "1MiB"]).complains(&["needs at least", "less than the", "between steps"]);
}

/// The choice for training does not depend on how many images are evaluated at a time.
#[test]
fn evaluations_of_fewer_images_find_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), large_evaluations, &[]);
    let file = dir.path().join("large.toml");
    fs::write(&file, recipe.to_toml()).unwrap();
    let memory = needs(&mut planner, &recipe, 0, (4, Keep, 3)).to_string();
    let short = ["--set", "stage.0.steps=3"];
    let (plain, fitted) = (dir.path().join("plain"), dir.path().join("fitted"));
    train(&file, &plain, &short).done();
    train(&file, &fitted, &[&short[..], &["--memory", &memory]].concat()).done();
    let written = fs::read_to_string(fitted.join("recipe.toml")).unwrap();
    assert!(written.contains("eval_batch = 3") && written.contains("micro_batch = 4"), "{written}");
    let metrics = |run: &Path| log(run, "eval").iter().map(|e| e["metrics"].to_string()).collect::<Vec<_>>();
    assert!(!metrics(&plain).is_empty());
    assert_eq!(metrics(&plain), metrics(&fitted));
    let refused = train(&file, &dir.path().join("none"), &["--memory", "11"]);
    refused.complains(&["stage pretrain: needs at least", "--memory gives 11 B"]);
    assert!(!dir.path().join("none").exists(), "nothing is left of a run that never began");
}

#[test]
fn a_plan_says_what_a_budget_does() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, mut planner) = planned(dir.path(), |_| {}, &[]);
    let file = write_recipe(dir.path(), shapes());
    let budget = needs(&mut planner, &recipe, 0, (1, Keep, 1));
    let plan = |more: &[&str]| {
        let args = [file.to_str().unwrap(), "--plan", "--device", "cpu"];
        run_program("train", [&args, more].concat()).done().out
    };
    let memory = budget.to_string();
    let (text, json) = (plan(&["--memory", &memory]), plan(&["--memory", &memory, "--json"]));
    for words in [
        "tiny, planned for cpu, each stage to fit ",
        "  pretrain: micro_batch = 1, was 2: it needs ",
        "  pretrain: batch norm sees 1 image instead of 2: the result is not the recipe's",
        "stage pretrain: 120 steps of 4 images, in 4 passes of 1 each",
        "  largest batch that fits ",
        ", with recompute ",
    ] {
        assert!(text.contains(words), "want {words:?} in\n{text}");
    }
    let said: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(said["budget_bytes"], budget);
    let stage = &said["stages"][0];
    assert_eq!((&stage["micro_batch"], &stage["recompute"]), (&1.into(), &"none".into()));
    let fitted = &stage["budget"];
    let change: Value = serde_json::from_str(r#"[{"key": "micro_batch", "was": "2", "is": "1"}]"#).unwrap();
    assert_eq!(fitted["changes"], change);
    assert_eq!(fitted["unchanged_bytes"], needs(&mut planner, &recipe, 0, (2, Keep, 2)));
    assert_eq!(fitted["why"].as_array().unwrap().len(), 2);
    assert_eq!(fitted["largest"]["micro_batch"], 1);
    assert_eq!(stage["total_bytes"], budget);
    let plain: Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    assert_eq!((&plain["budget_bytes"], &plain["stages"][0]["budget"]), (&Value::Null, &Value::Null));
}

#[test]
fn sizes_are_read_as_they_are_written() {
    for (text, bytes) in [
        ("11", 11),
        ("11B", 11),
        ("12000000000", 12_000_000_000),
        ("11GiB", 11 << 30),
        ("11GB", 11_000_000_000),
        ("12000MiB", 12_000 << 20),
        (" 3 KiB ", 3 << 10),
        ("2kB", 2_000),
        ("2KB", 2_000),
        ("7MB", 7_000_000),
        ("1TiB", 1 << 40),
        ("1TB", 1_000_000_000_000),
        ("1.5GiB", 3 << 29),
        ("0.001KiB", 1),
        ("16777215TiB", 16_777_215 << 40),
    ] {
        assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
    }
    let huge = "9".repeat(60);
    for (text, words) in [
        ("", "want a number"),
        ("0", "more than 0"),
        ("0GiB", "more than 0"),
        ("0.0001KiB", "more than 0"),
        ("-1", "want a number"),
        ("-1GiB", "want a number"),
        ("+1", "want a number"),
        ("eleven", "want a number"),
        ("GiB", "want a number"),
        ("11G", "such as 11GiB"),
        ("11gib", "such as 11GiB"),
        ("11 GiB more", "such as 11GiB"),
        ("1e9", "such as 11GiB"),
        ("1.5", "want a number"),
        ("1.GiB", "want a number"),
        (".5GiB", "want a number"),
        ("1.2.3GiB", "want a number"),
        ("1,5GiB", "such as 11GiB"),
        ("١GiB", "such as 11GiB"),
        ("16777216TiB", "more than this machine"),
        ("18446744073709551616", "more than this machine"),
        (&huge, "more than this machine"),
        (&format!("{huge}.5TiB"), "more than this machine"),
    ] {
        let error = text.parse::<MemorySize>().unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
    for text in ["-1", "-1GiB", "x", "0", "--plan"] {
        let ran = run_program("train", ["--memory", text]);
        assert!(ran.code == Some(2) && ran.err.contains("--memory"), "{ran:?}");
    }
}
