//! Weight files themselves: 16-bit types are read, and damaged or foreign files are refused without changing anything.

use std::fs;

use serde_json::{Value, json};
use upres::device::Device;
use upres::models::config::{BackboneKind, BoxHeadKind, Detector, ModelConfig};
use upres::weights::{ForeignData, Format, Origin, load, write};

use super::weights::{CLASSES, bits, filled, model, read, small, tensors};

/// A safetensors file with any entries, right or wrong.
fn raw(header: &Value, data: &[u8]) -> Vec<u8> {
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat()
}

#[test]
fn half_types_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let cfg = small(Detector::FasterRcnn, BackboneKind::Resnet18);
    let store = filled(&cfg, CLASSES);
    for (dtype, round) in [
        ("F16", (|v| half::f16::from_f32(v).to_bits()) as fn(f32) -> u16),
        ("BF16", |v| half::bf16::from_f32(v).to_bits()),
    ] {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for t in tensors(Format::Torchvision, &cfg, &store) {
            let ForeignData::F32(x) = t.data else { continue };
            let start = data.len();
            data.extend(x.iter().flat_map(|v| round(*v).to_le_bytes()));
            header.insert(t.name, json!({ "dtype": dtype, "shape": t.shape, "data_offsets": [start, data.len()] }));
        }
        let path = dir.path().join("w.safetensors");
        fs::write(&path, raw(&header.into(), &data)).unwrap();
        let (loaded, other) = read(&path, &cfg, CLASSES);
        loaded.unwrap();
        for (a, b) in store.all().iter().zip(other.all()) {
            let back = |v: f32| match dtype {
                "F16" => half::f16::from_f32(v).to_f32(),
                _ => half::bf16::from_f32(v).to_f32(),
            };
            assert!(a.value().f32s().iter().zip(b.value().f32s()).all(|(x, y)| back(*x) == *y), "{}", a.name());
        }
    }
}

#[test]
fn files_that_are_refused_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let cfg = small(Detector::FasterRcnn, BackboneKind::Resnet18);
    let store = model(&Device::cpu(), &cfg, CLASSES);
    let before = bits(&store);
    let refused = |bytes: &[u8], parts: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let e = load(&path, &cfg, &store, Origin::default()).map(|_| ()).unwrap_err().to_string();
        assert!(!e.contains('\n') && e.starts_with(&path.display().to_string()), "{e}");
        parts.iter().for_each(|p| assert!(e.contains(p), "want {p:?} in: {e}"));
        assert!(bits(&store) == before, "changed: {e}");
    };
    let good = |format, cfg: &ModelConfig| {
        let mut bytes = Vec::new();
        write(&mut bytes, &tensors(format, cfg, &filled(cfg, CLASSES)), &[]).unwrap();
        bytes
    };
    let whole = good(Format::Torchvision, &cfg);
    for n in [0, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..n], &["not a whole safetensors file"]);
    }
    refused(&[whole.as_slice(), b"x"].concat(), &["not a whole safetensors file"]);
    // Wrong headers: a wrong length, offsets beyond the end, overlapping offsets, sizes that do not fit the shape.
    refused(&[&u64::MAX.to_le_bytes(), &whole[8..]].concat(), &["not a whole"]);
    refused(&[&9u64.to_le_bytes(), &whole[8..]].concat(), &["not a whole"]);
    let entry = |offsets: [usize; 2]| json!({ "dtype": "F32", "shape": [2], "data_offsets": offsets });
    refused(&raw(&json!({ "conv1.weight": entry([0, 16]) }), &[0; 8]), &["not a whole"]);
    refused(&raw(&json!({ "conv1.weight": entry([8, 0]) }), &[0; 8]), &["not a whole"]);
    refused(&raw(&json!({ "a": entry([0, 8]), "b": entry([4, 12]) }), &[0; 12]), &["not a whole"]);
    let many = json!({ "dtype": "F32", "shape": [u64::MAX, 3], "data_offsets": [0, 8] });
    refused(&raw(&json!({ "conv1.weight": many }), &[0; 8]), &["not a whole"]);
    refused(b"PK\x03\x04 and so on", &["PyTorch", "pth_to_safetensors.py"]);
    refused(b"\x80\x02}q\x00(X\x05\x00\x00\x00", &["PyTorch", "pth_to_safetensors.py"]);
    refused(&raw(&json!({}), &[]), &["no upres metadata", "no tensors at all"]);
    refused(&raw(&json!({ "encoder.weight": entry([0, 8]) }), &[0; 8]), &["encoder.weight", "interchange.md"]);

    // Weights of other models: the error names the first tensors with both shapes, and where the difference is.
    let with = |change: fn(&mut ModelConfig)| {
        let mut other = cfg.clone();
        change(&mut other);
        good(Format::Mmdetection, &other)
    };
    refused(
        &with(|c| c.backbone.kind = BackboneKind::Resnet34),
        &["another backbone", "layer1.2.bn1.bias is not in the model", "more"],
    );
    refused(
        &with(|c| c.backbone.kind = BackboneKind::SwinT),
        &["another backbone", "backbone.conv1.weight is missing"],
    );
    refused(
        &with(|c| c.backbone.width = 0.25),
        &["another backbone", "backbone.conv1.weight is [16, 3, 7, 7], the model wants [8, 3, 7, 7]"],
    );
    refused(&with(|c| c.fpn.channels = 16), &["another pyramid", "neck.lateral_convs.0.conv.weight is [16, 8, 1, 1]"]);
    refused(&with(|c| c.rpn.anchor_scales = vec![4.0, 8.0]), &["region proposal", "rpn_cls.weight is [6, 8, 1, 1]"]);
    refused(
        &with(|c| c.box_head.kind = BoxHeadKind::Shared4Conv1Fc),
        &["another box head", "shared_fcs.0.weight is [16, 2304], the model wants [16, 72]"],
    );
    refused(
        &with(|c| c.box_head.class_agnostic = true),
        &["another box head", "fc_reg.weight is [4, 16], the model wants [20, 16]"],
    );
    refused(&with(|c| c.detector = Detector::MaskRcnn), &["mask_rcnn", "model.detector is faster_rcnn"]);
    refused(
        &with(|c| *c = small(Detector::RetinaNet, BackboneKind::Resnet18)),
        &["retinanet", "model.detector is faster_rcnn"],
    );

    // One tensor with another type, and one that is not finite.
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let at = text(&whole).find("\"F32\"").unwrap();
    let mut typed = whole.clone();
    typed[at..at + 5].copy_from_slice(b"\"I32\"");
    refused(&typed, &["is I32", "f32, f16 or bf16"]);
    let mut spoilt = whole.clone();
    let n = spoilt.len();
    spoilt[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&spoilt, &["NaN", "spoilt"]);

    fs::write(&path, &whole).unwrap();
    let origin = Origin { format: Some(Format::Mmdetection), keep: None };
    let e = load(&path, &cfg, &store, origin).unwrap_err().to_string();
    assert!(e.contains("those of torchvision, not of mmdetection"), "{e}");
    let four = ModelConfig { box_head: ModelConfig::default().box_head, ..cfg.clone() };
    let e = load(&path, &four, &model(&Device::cpu(), &four, CLASSES), Origin::default()).unwrap_err().to_string();
    assert!(e.contains("model.box_head.kind"), "{e}");
    assert!(load(&dir.path().join("none"), &cfg, &store, Origin::default()).is_err());
    load(&path, &cfg, &store, Origin::default()).unwrap();
}
