//! The rules of the fixtures: weights bit for bit, storage, layouts, and that the stored numbers mean what the README
//! says.

use crate::support::fixtures::*;

#[test]
fn hash_rule_gives_the_stored_check_values() {
    let inputs = Fixture::open("detectors/inputs");
    let checks = inputs.value("hash_check").as_object().expect("hash_check");
    assert_eq!(checks.len(), 2);
    for (name, check) in checks {
        assert_eq!(format!("{:#x}", fnv1a(name.as_bytes())), check["fnv"].as_str().expect("fnv"), "{name}");
        for (i, (u, want)) in hash_uniform(name).zip(check["u"].as_array().expect("u")).enumerate() {
            assert_eq!(u.to_bits(), want.as_f64().expect("u").to_bits(), "{name}[{i}]");
            assert_eq!(f64::from(u as f32), u, "exact in f32");
        }
    }
}

#[test]
fn weights_have_the_shapes_of_the_names() {
    let rules = WeightRules::open("faster");
    assert_eq!(rules.0.len(), 301);
    assert_eq!(rules.0["backbone.conv1.weight"].shape, [64, 3, 7, 7]);
    let var = rules.tensor("backbone.bn1.running_var");
    assert!(var.len() == 64 && var.iter().all(|&v| v > 0.0), "a variance is positive");
    let (oihw, ohwi) = (rules.tensor("backbone.conv1.weight"), rules.tensor_nhwc("backbone.conv1.weight"));
    let (o, i, y, x) = (5, 2, 3, 6);
    assert_eq!(ohwi[((o * 7 + y) * 7 + x) * 3 + i], oihw[((o * 3 + i) * 7 + y) * 7 + x]);
}

#[test]
fn layouts_convert_there_and_back() {
    let shape = [2, 3, 4, 5];
    let x: Vec<f32> = (0..120).map(|i| i as f32).collect();
    let y = nchw_to_nhwc(&x, shape);
    assert_eq!(&y[..4], [0.0, 20.0, 40.0, 1.0]);
    assert_eq!(nhwc_to_nchw(&y, shape), x);
    assert_eq!(nchw_to_nhwc(&[], [0, 3, 4, 5]), [0.0_f32; 0]);
}

#[test]
fn every_tensor_is_as_long_as_its_shape_and_stride_say() {
    for file in ["inputs", "faster", "cascade", "mask", "mask_swin", "retinanet"].map(|f| format!("detectors/{f}")) {
        let fixture = Fixture::open(&file);
        for name in fixture.names() {
            let n: usize = fixture.shape(&name).iter().product();
            let want = n.div_ceil(fixture.stride(&name));
            let got = match fixture.dtype(&name).as_str() {
                "float32" => fixture.stored_f32(&name).len(),
                "int32" => fixture.i32(&name).len(),
                "uint8" => fixture.u8(&name).len(),
                "bits" => fixture.bits(&name).len(),
                other => panic!("{name}: {other}"),
            };
            assert_eq!(got, want, "{file}: {name}");
        }
    }
}

#[test]
fn compare_sees_one_wrong_element_anywhere() {
    let fixture = Fixture::open("detectors/faster");
    let name = "eval.rpn_reg.2";
    let (nhwc, _) = fixture.f32_nhwc(name);
    fixture.compare_nhwc(name, &nhwc, 1e-6).expect("equal to itself");
    for bad in [f32::NAN, nhwc[77] + 0.01] {
        let mut wrong = nhwc.clone();
        wrong[77] = bad;
        assert!(fixture.compare_nhwc(name, &wrong, 1e-4).is_err(), "{bad}");
    }
    assert!(fixture.compare_nhwc(name, &nhwc[1..], 1e-4).is_err(), "length");
}

#[test]
fn stored_gradients_agree_with_their_summaries() {
    let fixture = Fixture::open("detectors/faster");
    for mode in ["pretrain", "finetune"] {
        let summary = fixture.grad_summary(&format!("{mode}.grad_summary"));
        let mut whole = 0;
        for name in fixture.names() {
            let Some(param) = name.strip_prefix(&format!("{mode}.grad.")) else { continue };
            if fixture.stride(&name) == 1 {
                let want = summary[param].unwrap_or_else(|| panic!("{param} is frozen in {mode}"));
                let (l2, dot) = GradSummary::of(param, &fixture.f32(&name)).relative_errors(&want);
                assert!(l2 < 1e-9 && dot < 1e-9, "{name}: {l2:e} {dot:e}");
                whole += 1;
            }
        }
        assert!(whole >= 5, "{mode}: {whole} whole gradients");
    }
    let frozen = fixture.grad_summary("finetune.grad_summary");
    assert!(frozen["backbone.conv1.weight"].is_none() && frozen["backbone.layer2.0.conv1.weight"].is_some());
}

/// Sampled indices point into [ground truth ; proposals], positives first, images in order.
#[test]
fn rois_are_the_sampled_boxes_in_order() {
    let (inputs, faster) = (Fixture::open("detectors/inputs"), Fixture::open("detectors/faster"));
    for mode in ["pretrain", "finetune"] {
        let mut want = Vec::new();
        for image in 0..2 {
            let mut boxes = inputs.f32(&format!("gt.{image}.boxes"));
            boxes.extend(faster.f32(&format!("{mode}.proposals.{image}.bboxes")));
            for list in ["pos_inds", "neg_inds"] {
                for i in faster.i32(&format!("{mode}.{list}.{image}")) {
                    want.push(image as f32);
                    want.extend(&boxes[4 * i as usize..][..4]);
                }
            }
        }
        assert_eq!(faster.f32(&format!("{mode}.rois")), want, "{mode}");
    }
}
