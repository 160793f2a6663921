//! Feature pyramid network (Lin et al. 2017): a 1×1 convolution on each of C2 to C5, top-down sums, a 3×3 convolution
//! on each sum. Above P5, P6 is every second pixel of P5, or (RetinaNet) P6 and P7 come from convolutions of stride 2.

use super::config::{FpnConfig, FpnExtra};
use crate::error::Result;
use crate::nn::{Builder, Conv2d, ConvSpec, Init};
use crate::ops::conv2d::Activation;
use crate::ops::max_pool::max_pool;
use crate::ops::relu::relu;
use crate::ops::upsample_add::upsample_add;
use crate::tape::{Tape, Var};

/// The feature pyramid network.
pub struct Fpn {
    lateral: Vec<Conv2d>,
    output: Vec<Conv2d>,
    extra: Vec<Conv2d>,
    cfg: FpnConfig,
}

impl Fpn {
    /// A network with initial weights; `c_in` are the channels of C2 to C5.
    pub fn new(b: &mut Builder<'_>, cfg: &FpnConfig, c_in: &[usize; 4]) -> Result<Self> {
        let used = &c_in[cfg.start - 2..];
        let (mut lateral, mut output, mut extra) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &c) in used.iter().enumerate() {
            let mut l = b.sub(format!("lateral_convs.{i}.conv"));
            lateral.push(Conv2d::new(&mut l, ConvSpec::new(c, cfg.channels, Init::XavierUniform))?);
        }
        for i in 0..used.len() {
            let mut o = b.sub(format!("fpn_convs.{i}.conv"));
            output.push(Conv2d::new(&mut o, ConvSpec::new(cfg.channels, cfg.channels, Init::XavierUniform).kernel(3))?);
        }
        if cfg.extra != FpnExtra::Subsample {
            for i in used.len()..cfg.levels {
                let first = i == used.len() && cfg.extra == FpnExtra::ConvC5;
                let c = if first { c_in[3] } else { cfg.channels };
                let mut o = b.sub(format!("fpn_convs.{i}.conv"));
                extra.push(Conv2d::new(
                    &mut o,
                    ConvSpec::new(c, cfg.channels, Init::XavierUniform).kernel(3).stride(2),
                )?);
            }
        }
        Ok(Fpn { lateral, output, extra, cfg: cfg.clone() })
    }

    /// Computes the levels of the pyramid (P2 to P5 or P6, or P3 to P7) from C2 to C5.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::ParamStore;
    use crate::ops::conv2d::conv2d;
    use crate::tensor::Tensor;

    /// As in torchvision's RetinaNet, P7 is computed from `relu(P6)`, while P6 itself keeps its negatives.
    #[test]
    fn a_relu_between_the_extra_levels() {
        let dev = Device::cpu();
        let cfg = FpnConfig { channels: 8, levels: 5, start: 3, extra: FpnExtra::ConvP5, ..FpnConfig::default() };
        let levels = |extra_relu: bool| {
            let mut store = ParamStore::new(&dev);
            let cfg = FpnConfig { extra_relu, ..cfg.clone() };
            let fpn = Fpn::new(&mut store.builder(3), &cfg, &[8; 4]).unwrap();
            let mut tape = Tape::inference(&dev);
            let c: Vec<Var> = [64, 32, 16, 8]
                .into_iter()
                .map(|s| {
                    let x = Init::Normal(1.0).values(&[s * s * 8], "x", s as u64);
                    tape.constant(Tensor::from_slice(&dev, &[1, s, s, 8], &x).unwrap())
                })
                .collect();
            let c: [Var; 4] = c.try_into().unwrap_or_else(|_| panic!("four maps"));
            let p = fpn.forward(&mut tape, &c).unwrap();
            let mut param = |name: &str| tape.param(store.get(&format!("fpn_convs.4.conv.{name}")).unwrap());
            let (weight, bias) = (param("weight"), param("bias"));
            let relu = relu(&mut tape, &p[3]).unwrap();
            let top = if extra_relu { &relu } else { &p[3] };
            let p7 = conv2d(&mut tape, top, &weight, Some(&bias), 2, 1, Activation::None).unwrap();
            assert_eq!(p[4].value().f32s(), p7.value().f32s());
            [p[3].value().f32s().to_vec(), p[4].value().f32s().to_vec()]
        };
        let ([p6, p7], [p6_relu, p7_relu]) = (levels(false), levels(true));
        assert!(p6 == p6_relu && p6.iter().any(|&v| v < 0.0) && p7 != p7_relu);
    }
}
