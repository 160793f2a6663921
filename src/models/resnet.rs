//! ResNet (He et al. 2016), "pytorch style": the stride of a bottleneck is in its 3×3 convolution.
//!
//! ```text
//! image [N,H,W,3] → 7×7/2 → BN ReLU → 3×3/2 max → layer1 (C2, /4) → layer2 (C3, /8)
//!                 → layer3 (C4, /16) → layer4 (C5, /32)
//! basic:       x → 3×3/s → BN ReLU → 3×3 → BN → + x → ReLU
//! bottleneck:  x → 1×1 → BN ReLU → 3×3/s → BN ReLU → 1×1 (×4) → BN → + x → ReLU
//! ```

use std::rc::Rc;

use super::config::BackboneConfig;
use super::mode::BackboneMode;
use crate::error::Result;
use crate::nn::{BatchNorm, Builder, Conv2d, ConvSpec, Init, NormMode};
use crate::ops::conv2d::Activation;
use crate::ops::max_pool::max_pool;
use crate::tape::{Tape, Var};

/// The backbone.
pub struct ResNet {
    stem: Rc<Stem>,
    layers: Vec<Vec<Rc<Block>>>,
}

struct Stem {
    conv1: Conv2d,
    bn1: BatchNorm,
}

fn norm_of(mode: BackboneMode, layer: i32) -> NormMode {
    if layer <= mode.frozen_stages { NormMode::Frozen } else { mode.norm }
}

struct Block {
    /// Basic block: two 3×3 convolutions; bottleneck: 1×1, 3×3, 1×1. Each has its batch norm.
    convs: Vec<(Conv2d, BatchNorm)>,
    downsample: Option<(Conv2d, BatchNorm)>,
}

impl ResNet {
    /// A network with initial weights. Parameters are under the builder's prefix and have the names of torchvision and
    /// mmdetection.
    pub fn new(b: &mut Builder<'_>, cfg: &BackboneConfig) -> Result<Self> {
        let stem = cfg.channels(64);
        let conv1 = Conv2d::new(
            &mut b.sub("conv1"),
            ConvSpec::new(3, stem, Init::KaimingFanOut).kernel(7).stride(2).no_bias(),
        )?;
        let bn1 = BatchNorm::new(&mut b.sub("bn1"), stem, cfg.norm_eps, cfg.norm_momentum, 1.0)?;
        let mut layers = Vec::new();
        let mut c_in = stem;
        for (i, &blocks) in cfg.kind.blocks().iter().enumerate() {
            let mut layer = b.sub(format!("layer{}", i + 1));
            let stride_px = if i == 0 { 1 } else { 2 };
            let mut v = Vec::new();
            for j in 0..blocks {
                let stride_px = if j == 0 { stride_px } else { 1 };
                v.push(Rc::new(Block::new(&mut layer.sub(j), cfg, c_in, cfg.channels(64 << i), stride_px)?));
                c_in = cfg.out_channels()[i];
            }
            layers.push(v);
        }
        Ok(ResNet { stem: Rc::new(Stem { conv1, bn1 }), layers })
    }

    /// Whether a parameter of the detector, by its full name, lies in a frozen stem or layer.
    pub fn is_frozen(name: &str, frozen_stages: i32) -> bool {
        let stem = name.starts_with("backbone.conv1.") || name.starts_with("backbone.bn1.");
        (frozen_stages >= 0 && stem) || (1..=frozen_stages).any(|i| name.starts_with(&format!("backbone.layer{i}.")))
    }

    /// `[N,H,W,3]` to C2, C3, C4, C5.
    pub fn forward(&self, tape: &mut Tape, image: &Var, mode: BackboneMode) -> Result<[Var; 4]> {
        let (stem, norm) = (self.stem.clone(), norm_of(mode, 0));
        let mut x = tape.scope("stem", |tape| {
            mode.part(tape, image.clone(), move |tape, image| stem.forward(tape, &image, norm))
        })?;
        let mut out = Vec::with_capacity(4);
        for (i, layer) in self.layers.iter().enumerate() {
            x = tape.scope(&format!("layer{}", i + 1), |tape| {
                let mut x = x.clone();
                for block in layer {
                    let (block, norm) = (block.clone(), norm_of(mode, i as i32 + 1));
                    x = mode.part(tape, x, move |tape, x| block.forward(tape, x, norm))?;
                }
                Ok::<_, crate::Error>(x)
            })?;
            out.push(x.clone());
        }
        Ok(out.try_into().unwrap_or_else(|_| unreachable!("four layers")))
    }
}

impl Stem {
    fn forward(&self, tape: &mut Tape, image: &Var, norm: NormMode) -> Result<Var> {
        // Max pooling saves positions, not its input, which is the largest map of the network; only the ReLU would
        // keep that map until the backward pass. So the output of batch norm and ReLU is rematerialised, except while
        // this part is itself being rematerialised: then the map is needed only for a short time.
        let bn = |tape: &mut Tape, x: Var| self.bn1.forward(tape, &x, None, true, norm);
        let x = self.conv1.forward(tape, image, Activation::None)?;
        let y = if tape.is_rematerialising() {
            bn(tape, x)?
        } else {
            tape.with_rematerialised_outputs(|tape| bn(tape, x))?
        };
        max_pool(tape, &y, 3, 2, 1)
    }
}

impl Block {
    fn new(b: &mut Builder<'_>, cfg: &BackboneConfig, c_in: usize, c: usize, stride_px: usize) -> Result<Self> {
        let c_out = c * cfg.kind.expansion();
        let plan: &[(usize, usize, usize, usize)] = if cfg.kind.bottleneck() {
            &[(c_in, c, 1, 1), (c, c, 3, stride_px), (c, c_out, 1, 1)]
        } else {
            &[(c_in, c, 3, stride_px), (c, c, 3, 1)]
        };
        let mut convs = Vec::new();
        for (i, &(ci, co, k, s)) in plan.iter().enumerate() {
            let last = i + 1 == plan.len();
            let gamma = if last && cfg.zero_init_residual { 0.0 } else { 1.0 };
            let conv = Conv2d::new(
                &mut b.sub(format!("conv{}", i + 1)),
                ConvSpec::new(ci, co, Init::KaimingFanOut).kernel(k).stride(s).no_bias(),
            )?;
            let bn = BatchNorm::new(&mut b.sub(format!("bn{}", i + 1)), co, cfg.norm_eps, cfg.norm_momentum, gamma)?;
            convs.push((conv, bn));
        }
        let downsample = (stride_px != 1 || c_in != c_out)
            .then(|| -> Result<_> {
                let mut d = b.sub("downsample");
                let conv = Conv2d::new(
                    &mut d.sub(0),
                    ConvSpec::new(c_in, c_out, Init::KaimingFanOut).stride(stride_px).no_bias(),
                )?;
                let bn = BatchNorm::new(&mut d.sub(1), c_out, cfg.norm_eps, cfg.norm_momentum, 1.0)?;
                Ok((conv, bn))
            })
            .transpose()?;
        Ok(Block { convs, downsample })
    }

    fn forward(&self, tape: &mut Tape, x: Var, norm: NormMode) -> Result<Var> {
        let identity = match &self.downsample {
            None => x.clone(),
            Some((conv, bn)) => {
                let d = conv.forward(tape, &x, Activation::None)?;
                bn.forward(tape, &d, None, false, norm)?
            }
        };
        let (last, first) = self.convs.split_last().unwrap_or_else(|| unreachable!("a block has convolutions"));
        let mut x = x;
        for (conv, bn) in first {
            x = conv.forward(tape, &x, Activation::None)?;
            x = bn.forward(tape, &x, None, true, norm)?;
        }
        let y = last.0.forward(tape, &x, Activation::None)?;
        drop(x);
        last.1.forward(tape, &y, Some(&identity), true, norm)
    }
}
