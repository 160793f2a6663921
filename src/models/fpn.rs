//! Feature pyramid network (Lin et al. 2017): a 1×1 on each C, top-down sums, a 3×3 on each sum; P6 is every second
//! pixel of P5.

use super::config::FpnConfig;
use crate::error::Result;
use crate::nn::{Builder, Conv2d, Init};
use crate::ops::conv2d::Activation;
use crate::ops::max_pool::max_pool;
use crate::ops::upsample_add::upsample_add;
use crate::tape::{Tape, Var};

/// The network.
pub struct Fpn {
    lateral: Vec<Conv2d>,
    output: Vec<Conv2d>,
    levels: usize,
}

impl Fpn {
    /// From the channels of C2 to C5.
    pub fn new(b: &mut Builder<'_>, cfg: &FpnConfig, c_in: &[usize]) -> Result<Self> {
        let mut lateral = Vec::new();
        let mut output = Vec::new();
        for (i, &c) in c_in.iter().enumerate() {
            let mut l = b.sub(format!("lateral_convs.{i}.conv"));
            lateral.push(Conv2d::new(&mut l, c, cfg.channels, 1, 1, true, Init::XavierUniform)?);
        }
        for i in 0..c_in.len() {
            let mut o = b.sub(format!("fpn_convs.{i}.conv"));
            output.push(Conv2d::new(&mut o, cfg.channels, cfg.channels, 3, 1, true, Init::XavierUniform)?);
        }
        Ok(Fpn { lateral, output, levels: cfg.levels })
    }

    /// C2 to C5 in, P2 to P5 (or P6) out.
    pub fn forward(&self, tape: &mut Tape, c: &[Var]) -> Result<Vec<Var>> {
        let mut sums: Vec<Var> = Vec::with_capacity(c.len());
        for (i, x) in c.iter().enumerate().rev() {
            let lateral = self.lateral[i].forward(tape, x, Activation::None)?;
            let sum = match sums.last() {
                Some(top) => upsample_add(tape, top, &lateral)?,
                None => lateral,
            };
            sums.push(sum);
        }
        sums.reverse();
        let mut p = Vec::with_capacity(self.levels);
        for (x, conv) in sums.iter().zip(&self.output) {
            p.push(conv.forward(tape, x, Activation::None)?);
        }
        while p.len() < self.levels {
            let top = p[p.len() - 1].clone();
            p.push(max_pool(tape, &top, 1, 2, 0)?);
        }
        Ok(p)
    }
}
