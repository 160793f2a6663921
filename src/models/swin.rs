//! Swin Transformer (Liu et al. 2021).
//!
//! ```text
//! image [N,H,W,3] → 4×4 patches → linear → norm → stage1 (C2, /4) → merge → stage2 (C3, /8)
//!                 → merge → stage3 (C4, /16) → merge → stage4 (C5, /32)
//! block:   x → norm → qkv → windows, every other block shifted by half of one → proj → + x → norm → ×4 GELU → + x
//! merge:   2×2 tokens side by side → norm → linear to twice the channels
//! ```
//!
//! Tokens are always stored as an image `[N,H,W,C]`; windows exist only inside `window_attention`.

use std::rc::Rc;

use super::config::{BackboneConfig, SwinInit};
use super::mode::BackboneMode;
use crate::error::Result;
use crate::nn::{Builder, Init, LayerNorm, Linear};
use crate::ops::drop_path::drop_path;
use crate::ops::gelu::gelu;
use crate::ops::space_to_depth::space_to_depth;
use crate::ops::window_attention::{WindowAttention, window_attention};
use crate::tape::{Param, Role, Tape, Var};
use crate::tensor::Tensor;

/// Side of a patch in pixels.
const PATCH: usize = 4;
/// Hidden channels of a block's MLP, relative to the block's channels.
const MLP_RATIO: usize = 4;
const EPS: f32 = 1e-5;
/// torch's `trunc_normal_`, as in the paper: always used for the tables of position biases, and by default for linear
/// layers.
const TRUNC_NORMAL: Init = Init::TruncNormal(0.02);

/// The backbone.
pub struct Swin {
    patches: Linear,
    patch_norm: LayerNorm,
    stages: Vec<Stage>,
}

struct Stage {
    blocks: Vec<Rc<Block>>,
    /// Norm of the stage's output, if the pyramid uses this output. The next stage gets the output without the norm.
    norm: Option<LayerNorm>,
    merge: Option<Merge>,
}

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    table: Param,
    proj: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    attention: WindowAttention,
    /// Probability of dropping each of the block's two residual branches.
    drop: f32,
    /// Index of the block among all blocks of the network.
    index: u32,
}

struct Merge {
    norm: LayerNorm,
    reduction: Linear,
}

impl Swin {
    /// A network with initial weights. Parameters are under the builder's prefix and have mmdetection's names. `first`
    /// is the first of C2 to C5 that the pyramid uses (0: C2, 1: C3); earlier outputs have no norm.
    pub fn new(b: &mut Builder<'_>, cfg: &BackboneConfig, first: usize) -> Result<Self> {
        let channels = cfg.out_channels();
        let init = match cfg.init {
            SwinInit::TruncNormal => TRUNC_NORMAL,
            SwinInit::LecunNormal => Init::LecunNormal,
        };
        let mut embed = b.sub("patch_embed");
        let patches = Linear::new(&mut embed.sub("projection"), 3 * PATCH * PATCH, channels[0], init)?;
        let patch_norm = LayerNorm::new(&mut embed.sub("norm"), channels[0], EPS)?;
        let total: usize = cfg.kind.blocks().iter().sum();
        let mut index = 0;
        let mut stages = Vec::new();
        for (i, &depth) in cfg.kind.blocks().iter().enumerate() {
            let mut stage = b.sub(format!("stages.{i}"));
            let c = channels[i];
            let mut blocks = Vec::new();
            for j in 0..depth {
                let shift = if j % 2 == 0 { 0 } else { cfg.window / 2 };
                let heads = c / BackboneConfig::HEAD;
                let attention = WindowAttention { window: cfg.window, shift, heads };
                let drop = cfg.drop_path * index as f32 / (total - 1) as f32;
                let block = Block::new(&mut stage.sub(format!("blocks.{j}")), c, attention, init, drop, index)?;
                blocks.push(Rc::new(block));
                index += 1;
            }
            let merge = (i < 3)
                .then(|| -> Result<_> {
                    let mut m = stage.sub("downsample");
                    let norm = LayerNorm::new(&mut m.sub("norm"), 4 * c, EPS)?;
                    let reduction = Linear::without_bias(&mut m.sub("reduction"), 4 * c, 2 * c, init)?;
                    Ok(Merge { norm, reduction })
                })
                .transpose()?;
            let norm = (i >= first).then(|| LayerNorm::new(&mut b.sub(format!("norm{i}")), c, EPS)).transpose()?;
            stages.push(Stage { blocks, norm, merge });
        }
        Ok(Swin { patches, patch_norm, stages })
    }

    /// Whether a parameter of the detector, by its full name, lies in a frozen patch embedding or in a frozen stage or
    /// the norm of its output.
    pub fn is_frozen(name: &str, frozen_stages: i32) -> bool {
        let inside = |i: i32| {
            let (stage, norm) = (format!("backbone.stages.{}.", i - 1), format!("backbone.norm{}.", i - 1));
            name.starts_with(&stage) || name.starts_with(&norm)
        };
        (frozen_stages >= 0 && name.starts_with("backbone.patch_embed.")) || (1..=frozen_stages).any(inside)
    }

    /// `[N,H,W,3]` to C2, C3, C4, C5 `[N,H/4,W/4,C]` … `[N,H/32,W/32,8C]`, sizes rounded up. `key` seeds the drop path
    /// of a training pass; without it no branch is dropped. Branches of frozen stages are never dropped.
    pub fn forward(&self, tape: &mut Tape, image: &Var, mode: BackboneMode, key: Option<&Tensor>) -> Result<[Var; 4]> {
        let mut x = tape.scope("stem", |tape| {
            let x = space_to_depth(tape, image, PATCH)?;
            let x = self.patches.forward_last(tape, &x)?;
            self.patch_norm.forward(tape, &x)
        })?;
        let mut out = Vec::with_capacity(4);
        for (i, stage) in self.stages.iter().enumerate() {
            let key = key.filter(|_| i as i32 >= mode.frozen_stages);
            let (c, next) = tape.scope(&format!("stage{}", i + 1), |tape| stage.forward(tape, x, mode, key))?;
            out.push(c);
            x = next;
        }
        Ok(out.try_into().unwrap_or_else(|_| unreachable!("four stages")))
    }
}

impl Stage {
    /// Returns the stage's output (normalised if the pyramid uses it) and the input of the next stage.
    fn forward(&self, tape: &mut Tape, mut x: Var, mode: BackboneMode, key: Option<&Tensor>) -> Result<(Var, Var)> {
        for block in &self.blocks {
            let (block, key) = (block.clone(), key.cloned());
            x = mode.part(tape, x, move |tape, x| block.forward(tape, x, key.as_ref()))?;
        }
        let out = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(tape, &x))?;
        let Some(merge) = &self.merge else { return Ok((out, x)) };
        let x = space_to_depth(tape, &x, 2)?;
        let x = merge.norm.forward(tape, &x)?;
        Ok((out, merge.reduction.forward_last(tape, &x)?))
    }
}

impl Block {
    fn new(
        b: &mut Builder<'_>,
        c: usize,
        attention: WindowAttention,
        init: Init,
        drop: f32,
        index: u32,
    ) -> Result<Self> {
        let mut attn = b.sub("attn.w_msa");
        let rows = (2 * attention.window - 1).pow(2);
        let table =
            attn.param("relative_position_bias_table", Role::Position, &[rows, attention.heads], TRUNC_NORMAL)?;
        let qkv = Linear::new(&mut attn.sub("qkv"), c, 3 * c, init)?;
        let proj = Linear::new(&mut attn.sub("proj"), c, c, init)?;
        Ok(Block {
            norm1: LayerNorm::new(&mut b.sub("norm1"), c, EPS)?,
            qkv,
            table,
            proj,
            norm2: LayerNorm::new(&mut b.sub("norm2"), c, EPS)?,
            up: Linear::new(&mut b.sub("ffn.layers.0.0"), c, MLP_RATIO * c, init)?,
            down: Linear::new(&mut b.sub("ffn.layers.1"), MLP_RATIO * c, c, init)?,
            attention,
            drop,
            index,
        })
    }

    fn forward(&self, tape: &mut Tape, x: Var, key: Option<&Tensor>) -> Result<Var> {
        let mut y = self.norm1.forward(tape, &x)?;
        y = self.qkv.forward_last(tape, &y)?;
        let bias = self.qkv.bias(tape).unwrap_or_else(|| unreachable!("made with a bias"));
        let table = tape.param(&self.table);
        y = window_attention(tape, &y, &bias, &table, self.attention)?;
        y = self.proj.forward_last(tape, &y)?;
        let x = self.add(tape, x, y, 0, key)?;
        y = self.norm2.forward(tape, &x)?;
        y = self.up.forward_last(tape, &y)?;
        y = gelu(tape, &y)?;
        y = self.down.forward_last(tape, &y)?;
        self.add(tape, x, y, 1, key)
    }

    /// `x + y`; a training pass drops y for some images. `half` (0 or 1) tells the block's two branches apart.
    fn add(&self, tape: &mut Tape, x: Var, y: Var, half: u32, key: Option<&Tensor>) -> Result<Var> {
        let rate = if key.is_some() { self.drop } else { 0.0 };
        drop_path(tape, &x, &y, rate, 2 * self.index + half, key)
    }
}
