//! Random sampling of positives and negatives in every way of running it.

use super::{Case, case};
use crate::support::tensors::*;
use upres::Result;
use upres::device::Device;
use upres::ops::boxes_with_gt::boxes_with_gt;
use upres::ops::count_rows::count_rows;
use upres::ops::positives::positives;
use upres::ops::sample::{SampleMode, Sampler, sample};
use upres::ops::with_gt::with_gt;
use upres::philox::Purpose;
use upres::tensor::Tensor;

/// B, N, G, samples per image.
const CASES: &[Case] = &[
    case("no_images", &[0, 5, 2, 8]),
    case("no_candidates", &[2, 0, 3, 8]), // ground truth alone, then nothing at all
    case("nothing_wanted", &[2, 9, 1, 0]),
    case("one", &[1, 1, 1, 1]),
    case("tail", &[3, 33, 5, 64]),      // fewer candidates than samples
    case("words", &[2, 1024, 64, 300]), // as many candidates as a block has threads, most positive
    case("rpn", &[2, 12_495, 24, 256]),
    case("many", &[2, 12_495, 1, 5_000]), // more samples than a block has threads
    case("rpn_800x1344", &[1, 268_569, 2, 256]), // too many of both classes
];

fn run(device: &Device, case: &Case, mode: SampleMode) -> Result<Vec<Tensor>> {
    let [b, n, g, num] = case.dims.try_into().unwrap();
    let assigned = tensor(device, &[b, n], &integers(1, b * n, -2, g as i32 + 1));
    let count = tensor(device, &[b], &integers(2, b, 0, g as i32 + 1));
    let key = tensor(device, &[6], &[7, -2, 1, -3, 5, 11]);
    let all = with_gt(&assigned, &count, g)?;
    let (rois, truth) =
        (tensor(device, &[b, n, 4], &boxes(3, b * n, 50.0)), tensor(device, &[b, g, 4], &boxes(4, b * g, 50.0)));
    let s = sample(&all, &Sampler { num, pos_fraction: 0.25, mode }, &key)?;
    let (first, count) = (positives(&s.gt, 0..num / 4)?, count_rows(&s.idx)?);
    let behind = positives(&s.gt, num / 8..num / 4)?;
    Ok(vec![all, s.idx, s.gt, s.counts, first, count, behind, boxes_with_gt(&rois, &truth)?])
}

#[test]
fn is_the_same_everywhere() {
    for case in CASES {
        let [_, n, g, num]: [usize; 4] = case.dims.try_into().unwrap();
        for random in [false, true] {
            let mode = || if random { SampleMode::Random(Purpose::Test) } else { SampleMode::Strided };
            let out: Vec<Vec<i32>> =
                everywhere(|dev| run(dev, case, mode())).iter().take(7).map(Output::i32s).collect();
            let samples = out[1].chunks(num.max(1)).zip(out[2].chunks(num.max(1)));
            for (image, (idx, gt)) in samples.enumerate() {
                let assigned = &out[0][image * (n + g)..][..n + g];
                let (pos, neg) = (out[3][2 * image] as usize, out[3][2 * image + 1] as usize);
                assert!(pos <= num / 4 && pos + neg <= num, "{}: quotas", case.name);
                assert_eq!(out[5][image] as usize, pos + neg, "{}: rows", case.name);
                let first: Vec<i32> = (0..num / 4).map(|i| if i < pos { i as i32 } else { -1 }).collect();
                assert_eq!(out[4][image * first.len()..][..first.len()], first, "{}: positives", case.name);
                let behind = num / 4 - num / 8;
                let want = &first[num / 8..];
                assert_eq!(&out[6][image * behind..][..behind], want, "{}: positives of a slice", case.name);
                for (i, (&idx, &gt)) in idx.iter().zip(gt).enumerate() {
                    let right = if i < pos {
                        assigned[idx as usize] == gt + 1 && gt >= 0
                    } else if i < pos + neg {
                        assigned[idx as usize] == 0 && gt == -1
                    } else {
                        idx == -1 && gt == -1
                    };
                    assert!(right, "{}: image {image}, sample {i}: candidate {idx}, ground truth {gt}", case.name);
                }
            }
        }
    }
}

/// So many candidates that those whose random numbers share the first 11 bits do not fit the list of a block.
#[test]
fn millions_of_candidates() {
    let n = 2_500_000;
    let assigned = vec![0; n];
    let out = everywhere(|dev| {
        let (assigned, key) = (tensor(dev, &[1, n], &assigned), tensor(dev, &[6], &[3, 0, 0, 1, 0, 0]));
        let sampler = Sampler { num: 700, pos_fraction: 0.5, mode: SampleMode::Random(Purpose::Test) };
        let s = sample(&assigned, &sampler, &key)?;
        Ok(vec![s.idx, s.counts])
    });
    assert!(out[0].i32s().is_sorted() && out[1].i32s() == [0, 700]);
}
