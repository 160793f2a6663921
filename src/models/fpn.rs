//! Feature pyramid network (Lin et al. 2017): a 1×1 on each C, top-down sums, a 3×3 on each sum; above P5, P6 is every
//! second pixel of P5, or (RetinaNet) P6 and P7 come from convolutions of stride 2.

use super::config::{FpnConfig, FpnExtra};
use crate::error::Result;
use crate::nn::{Builder, Conv2d, Init};
use crate::ops::conv2d::Activation;
use crate::ops::max_pool::max_pool;
use crate::ops::relu::relu;
use crate::ops::upsample_add::upsample_add;
use crate::tape::{Tape, Var};

/// The network.
pub struct Fpn {
    lateral: Vec<Conv2d>,
    output: Vec<Conv2d>,
    extra: Vec<Conv2d>,
    cfg: FpnConfig,
}

impl Fpn {
    /// From the channels of C2 to C5.
    pub fn new(b: &mut Builder<'_>, cfg: &FpnConfig, c_in: &[usize; 4]) -> Result<Self> {
        let used = &c_in[cfg.start - 2..];
        let (mut lateral, mut output, mut extra) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &c) in used.iter().enumerate() {
            let mut l = b.sub(format!("lateral_convs.{i}.conv"));
            lateral.push(Conv2d::new(&mut l, c, cfg.channels, 1, 1, true, Init::XavierUniform)?);
        }
        for i in 0..used.len() {
            let mut o = b.sub(format!("fpn_convs.{i}.conv"));
            output.push(Conv2d::new(&mut o, cfg.channels, cfg.channels, 3, 1, true, Init::XavierUniform)?);
        }
        if cfg.extra != FpnExtra::Subsample {
            for i in used.len()..cfg.levels {
                let first = i == used.len() && cfg.extra == FpnExtra::ConvC5;
                let c = if first { c_in[3] } else { cfg.channels };
                let mut o = b.sub(format!("fpn_convs.{i}.conv"));
                extra.push(Conv2d::new(&mut o, c, cfg.channels, 3, 2, true, Init::XavierUniform)?);
            }
        }
        Ok(Fpn { lateral, output, extra, cfg: cfg.clone() })
    }

    /// C2 to C5 in; P2 to P5 or P6, or P3 to P7, out.
    pub fn forward(&self, tape: &mut Tape, c: &[Var; 4]) -> Result<Vec<Var>> {
        let used = &c[self.cfg.start - 2..];
        let mut sums: Vec<Var> = Vec::with_capacity(used.len());
        for (x, lateral) in used.iter().zip(&self.lateral).rev() {
            let lateral = lateral.forward(tape, x, Activation::None)?;
            let sum = match sums.last() {
                Some(top) => upsample_add(tape, top, &lateral)?,
                None => lateral,
            };
            sums.push(sum);
        }
        sums.reverse();
        let mut p = Vec::with_capacity(self.cfg.levels);
        for (x, conv) in sums.iter().zip(&self.output) {
            p.push(conv.forward(tape, x, Activation::None)?);
        }
        for i in p.len()..self.cfg.levels {
            let top = match (self.cfg.extra, i == used.len()) {
                (FpnExtra::ConvC5, true) => c[3].clone(),
                _ => p[i - 1].clone(),
            };
            p.push(match self.extra.get(i - used.len()) {
                None => max_pool(tape, &top, 1, 2, 0)?,
                Some(conv) if self.cfg.extra_relu && i > used.len() => {
                    let top = relu(tape, &top)?;
                    conv.forward(tape, &top, Activation::None)?
                }
                Some(conv) => conv.forward(tape, &top, Activation::None)?,
            });
        }
        Ok(p)
    }
}
