//! `train`: trains a detector by a recipe.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use upres::device::Device;
use upres::train::event::{Event, Observer};
use upres::train::recipe::Recipe;
use upres::train::recipe_read::Override;
use upres::train::trainer::{TrainOptions, train};

#[derive(Parser)]
struct Args {
    recipe: Option<PathBuf>,
    #[arg(long)]
    out: PathBuf,
    #[arg(long = "set")]
    set: Vec<Override>,
    #[arg(long)]
    resume: Option<PathBuf>,
    #[arg(long)]
    stop_after: Option<u64>,
}

struct Lines(std::fs::File);

impl Observer for Lines {
    fn event(&mut self, event: &Event) -> upres::Result<()> {
        use std::io::Write;
        writeln!(self.0, "{}", serde_json::to_string(event).unwrap()).unwrap();
        match event {
            Event::Train(t) => println!(
                "{} {}/{:.2} lr {:.4} {:?} g {:.2} {:.1} img/s wait {:.2} t {:.0}",
                t.stage,
                t.step,
                t.epoch,
                t.lr,
                t.losses.values().map(|v| (v * 1e3).round() / 1e3).collect::<Vec<_>>(),
                t.grad_norm,
                t.images_per_s,
                t.data_wait,
                t.time_s
            ),
            Event::Eval(e) => println!(
                "EVAL {} {} ap {:.3} ap50 {:.3} t {:.0}",
                e.stage, e.step, e.metrics["bbox_ap"], e.metrics["bbox_ap50"], e.time_s
            ),
            e => println!("{}", serde_json::to_string(e).unwrap()),
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (recipe, file) = match &args.recipe {
        Some(p) => (Recipe::read(p, &args.set)?, p.clone()),
        None => (Recipe::built_in(&args.set)?, PathBuf::from("recipes/shapes.toml")),
    };
    std::fs::create_dir_all(&args.out)?;
    let options = TrainOptions {
        checkpoints: args.out.clone(),
        resume: args.resume,
        stop_after: args.stop_after,
        interrupt: Arc::new(AtomicBool::new(false)),
    };
    let o = train(
        &recipe,
        &file,
        &Device::cpu(),
        &options,
        &mut Lines(std::fs::File::create(args.out.join("log.jsonl"))?),
    )?;
    if let Some((s, m)) = o.metrics {
        println!("{s}\n{m}");
    }
    println!("{:.0} s", o.time_s);
    Ok(())
}
