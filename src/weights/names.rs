//! Tables of the names of our parameters in other programs, one line for each layer.
//!
//! A line matches whole segments at the beginning of a name; the rest (`weight`, `running_var`, …) is the same on both
//! sides. On the left `*` stands for a number. On the right `*` is the same number, `*2+1` twice the number plus one.
//! The first line that matches is used. Main type: [`Dialect`].

use super::layout::{MergeOrder, Rows};

/// A layer: our name, the other program's name, and the order of its rows there.
pub(super) struct Line {
    ours: &'static str,
    theirs: &'static str,
    rows: RowOrder,
}

const fn line(ours: &'static str, theirs: &'static str, rows: RowOrder) -> Line {
    Line { ours, theirs, rows }
}

/// [`Rows`] before the number of anchors is known.
#[derive(Clone, Copy)]
enum RowOrder {
    Same,
    BackgroundFirst,
    WithBackground(usize),
    Anchors,
}

use RowOrder::{Anchors, BackgroundFirst, Same, WithBackground};

/// The names of one program, or of one of its generations.
pub(super) struct Dialect {
    /// Title for messages.
    pub title: &'static str,
    lines: &'static [Line],
    /// Order of channels where Swin merges tokens.
    pub merge: MergeOrder,
    /// A tensor that only files of this dialect have. A `.` at the end marks the beginning of a name.
    mark: &'static str,
    /// Beginnings of the names of tensors that a detector does not need.
    ignored: &'static [&'static str],
    /// Older name and newer name of a layer. One segment (such as `weight`) must follow the older name.
    old: &'static [(&'static str, &'static str)],
}

/// mmdetection 2 and 3. Our names are the same.
pub(super) const MMDETECTION: Dialect = Dialect {
    title: "mmdetection",
    lines: &[line("", "", Same)],
    merge: MergeOrder::ChannelsFirst,
    mark: "backbone.",
    ignored: &["ema_", "head."],
    old: &[],
};

/// The paper's repository: mmdetection 2 with Swin as its authors wrote it.
const PAPER: Dialect = Dialect {
    title: "mmdetection 2 with the Swin of its authors",
    lines: &[
        line("backbone.patch_embed.projection", "backbone.patch_embed.proj", Same),
        line("backbone.stages.*.blocks.*.attn.w_msa", "backbone.layers.*.blocks.*.attn", Same),
        line("backbone.stages.*.blocks.*.ffn.layers.0.0", "backbone.layers.*.blocks.*.mlp.fc1", Same),
        line("backbone.stages.*.blocks.*.ffn.layers.1", "backbone.layers.*.blocks.*.mlp.fc2", Same),
        line("backbone.stages.*", "backbone.layers.*", Same),
        line("", "", Same),
    ],
    merge: MergeOrder::ColumnsFirst,
    mark: "backbone.layers.0.blocks.0.attn.qkv.weight",
    ignored: &["ema_"],
    old: &[],
};

/// The ImageNet classifiers of Swin's authors.
const SWIN: Dialect = Dialect {
    title: "Swin's authors (a classifier)",
    lines: &[
        line("backbone.patch_embed.projection", "patch_embed.proj", Same),
        line("backbone.patch_embed", "patch_embed", Same),
        line("backbone.stages.*.blocks.*.attn.w_msa", "layers.*.blocks.*.attn", Same),
        line("backbone.stages.*.blocks.*.ffn.layers.0.0", "layers.*.blocks.*.mlp.fc1", Same),
        line("backbone.stages.*.blocks.*.ffn.layers.1", "layers.*.blocks.*.mlp.fc2", Same),
        line("backbone.stages.*", "layers.*", Same),
    ],
    merge: MergeOrder::ColumnsFirst,
    mark: "layers.0.blocks.0.attn.qkv.weight",
    ignored: &["norm.", "head."],
    old: &[],
};

/// torchvision's detectors on ResNet.
pub(super) const TORCHVISION: Dialect = Dialect {
    title: "torchvision",
    lines: &[
        line("backbone", "backbone.body", Same),
        line("neck.lateral_convs.*.conv", "backbone.fpn.inner_blocks.*.0", Same),
        line("neck.fpn_convs.*.conv", "backbone.fpn.layer_blocks.*.0", Same),
        line("rpn_head.rpn_conv", "rpn.head.conv.0.0", Same),
        line("rpn_head.rpn_cls", "rpn.head.cls_logits", Same),
        line("rpn_head.rpn_reg", "rpn.head.bbox_pred", Same),
        line("roi_head.bbox_head.shared_fcs.0", "roi_heads.box_head.fc6", Same),
        line("roi_head.bbox_head.shared_fcs.1", "roi_heads.box_head.fc7", Same),
        line("roi_head.bbox_head.fc_cls", "roi_heads.box_predictor.cls_score", BackgroundFirst),
        line("roi_head.bbox_head.fc_reg", "roi_heads.box_predictor.bbox_pred", WithBackground(4)),
        line("roi_head.mask_head.convs.*.conv", "roi_heads.mask_head.*.0", Same),
        line("roi_head.mask_head.upsample", "roi_heads.mask_predictor.conv5_mask", Same),
        line("roi_head.mask_head.conv_logits", "roi_heads.mask_predictor.mask_fcn_logits", WithBackground(1)),
        line("bbox_head.cls_convs.*.conv", "head.classification_head.conv.*.0", Same),
        line("bbox_head.reg_convs.*.conv", "head.regression_head.conv.*.0", Same),
        line("bbox_head.retina_cls", "head.classification_head.cls_logits", Anchors),
        line("bbox_head.retina_reg", "head.regression_head.bbox_reg", Same),
    ],
    merge: MergeOrder::ColumnsFirst,
    mark: "backbone.body.conv1.weight",
    ignored: &[],
    old: &[
        ("backbone.fpn.inner_blocks.*", "backbone.fpn.inner_blocks.*.0"),
        ("backbone.fpn.layer_blocks.*", "backbone.fpn.layer_blocks.*.0"),
        ("rpn.head.conv", "rpn.head.conv.0.0"),
        ("roi_heads.mask_head.mask_fcn1", "roi_heads.mask_head.0.0"),
        ("roi_heads.mask_head.mask_fcn2", "roi_heads.mask_head.1.0"),
        ("roi_heads.mask_head.mask_fcn3", "roi_heads.mask_head.2.0"),
        ("roi_heads.mask_head.mask_fcn4", "roi_heads.mask_head.3.0"),
        ("head.classification_head.conv.0", "head.classification_head.conv.0.0"),
        ("head.classification_head.conv.2", "head.classification_head.conv.1.0"),
        ("head.classification_head.conv.4", "head.classification_head.conv.2.0"),
        ("head.classification_head.conv.6", "head.classification_head.conv.3.0"),
        ("head.regression_head.conv.0", "head.regression_head.conv.0.0"),
        ("head.regression_head.conv.2", "head.regression_head.conv.1.0"),
        ("head.regression_head.conv.4", "head.regression_head.conv.2.0"),
        ("head.regression_head.conv.6", "head.regression_head.conv.3.0"),
    ],
};

/// The convolutions above P5, which torchvision names by their level (RetinaNet's pyramid begins at P3).
const TORCHVISION_P6_P7: &[Line] = &[
    line("neck.fpn_convs.3.conv", "backbone.fpn.extra_blocks.p6", Same),
    line("neck.fpn_convs.4.conv", "backbone.fpn.extra_blocks.p7", Same),
];

/// torchvision's ResNet classifiers.
pub(super) const TORCHVISION_RESNET: Dialect = Dialect {
    title: "torchvision (a classifier)",
    lines: &[line("backbone", "", Same)],
    merge: MergeOrder::ColumnsFirst,
    mark: "layer1.0.conv1.weight",
    ignored: &["fc."],
    old: &[],
};

/// torchvision's Swin classifiers. They lack the norms of a detector's backbone outputs; their `norm` is the
/// classifier's own.
pub(super) const TORCHVISION_SWIN: Dialect = Dialect {
    title: "torchvision (a classifier)",
    lines: &[
        line("backbone.patch_embed.projection", "features.0.0", Same),
        line("backbone.patch_embed.norm", "features.0.2", Same),
        line("backbone.stages.*.blocks.*.attn.w_msa", "features.*2+1.*.attn", Same),
        line("backbone.stages.*.blocks.*.ffn.layers.0.0", "features.*2+1.*.mlp.0", Same),
        line("backbone.stages.*.blocks.*.ffn.layers.1", "features.*2+1.*.mlp.3", Same),
        line("backbone.stages.*.blocks.*", "features.*2+1.*", Same),
        line("backbone.stages.*.downsample", "features.*2+2", Same),
    ],
    merge: MergeOrder::ColumnsFirst,
    mark: "features.1.0.attn.qkv.weight",
    ignored: &["norm.", "head."],
    old: &[],
};

/// All dialects, the ones with the most specific marks first.
const ALL: [&Dialect; 6] = [&TORCHVISION, &TORCHVISION_SWIN, &PAPER, &SWIN, &TORCHVISION_RESNET, &MMDETECTION];

impl Dialect {
    /// The dialect of a file with these tensor names.
    pub fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static Dialect> {
        let has = |mark: &str| match mark.strip_suffix('.') {
            Some(_) => names.clone().any(|n| n.starts_with(mark)),
            None => names.clone().any(|n| n == mark),
        };
        ALL.into_iter().find(|d| has(d.mark))
    }

    /// Whether it is one of torchvision's dialects.
    pub fn is_torchvision(&self) -> bool {
        self.title.starts_with("torchvision")
    }

    /// The other program's name of a parameter and the order of its rows; `None` if it has no such parameter.
    /// `levels_from` is the finest level of the pyramid, `anchors` the number of anchors of a cell.
    pub fn name(&self, ours: &str, levels_from: usize, anchors: usize) -> Option<(String, Rows)> {
        let high = if self.title == TORCHVISION.title && levels_from == 3 { TORCHVISION_P6_P7 } else { &[] };
        let lines = high.iter().chain(self.lines);
        let (name, rows) = lines.filter_map(|l| Some((rename(ours, l.ours, l.theirs)?, l.rows))).next()?;
        let rows = match rows {
            Same => Rows::Same,
            BackgroundFirst => Rows::BackgroundFirst,
            WithBackground(n) => Rows::WithBackground(n),
            Anchors => Rows::AnchorsWithBackground(anchors),
        };
        Some((name, rows))
    }

    /// The newest name of a tensor that may have an older name in a file.
    pub fn newest(&self, theirs: &str) -> String {
        let is_old = |from: &str| theirs.split('.').count() == from.split('.').count() + 1;
        let mut renamed = self.old.iter().filter(|(from, _)| is_old(from)).filter_map(|(a, b)| rename(theirs, a, b));
        renamed.next().unwrap_or_else(|| theirs.to_string())
    }

    /// Whether a detector does not need a tensor of a file: counters, tables that follow from sizes, a classifier's
    /// last layers.
    pub fn ignores(&self, theirs: &str) -> bool {
        const LAST: [&str; 3] = ["num_batches_tracked", "relative_position_index", "attn_mask"];
        theirs.rsplit('.').next().is_some_and(|last| LAST.contains(&last))
            || self.ignored.iter().any(|start| theirs.starts_with(start))
    }
}

/// A name that begins with the pattern `from`, with that part replaced by `to`.
fn rename(name: &str, from: &str, to: &str) -> Option<String> {
    let mut segments = name.split('.');
    let mut numbers = Vec::new();
    for want in from.split('.').filter(|s| !s.is_empty()) {
        let have = segments.next()?;
        match want {
            "*" => numbers.push(have.parse::<usize>().ok()?),
            _ if want == have => {}
            _ => return None,
        }
    }
    let mut numbers = numbers.into_iter();
    let mut out: Vec<String> = Vec::new();
    for segment in to.split('.').filter(|s| !s.is_empty()) {
        let number = "a table's line has a number on both sides";
        out.push(match segment {
            "*" => numbers.next().expect(number).to_string(),
            "*2+1" => (2 * numbers.next().expect(number) + 1).to_string(),
            "*2+2" => (2 * numbers.next().expect(number) + 2).to_string(),
            _ => segment.to_string(),
        });
    }
    out.extend(segments.map(str::to_string));
    Some(out.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_read_as_they_should() {
        let name = |d: &Dialect, ours: &str, from| d.name(ours, from, 9).map(|(n, _)| n).unwrap_or_default();
        for (ours, from, theirs) in [
            ("backbone.layer1.0.downsample.1.running_var", 2, "backbone.body.layer1.0.downsample.1.running_var"),
            ("neck.lateral_convs.2.conv.bias", 2, "backbone.fpn.inner_blocks.2.0.bias"),
            ("neck.fpn_convs.3.conv.bias", 2, "backbone.fpn.layer_blocks.3.0.bias"),
            ("neck.fpn_convs.3.conv.bias", 3, "backbone.fpn.extra_blocks.p6.bias"),
            ("neck.fpn_convs.2.conv.bias", 3, "backbone.fpn.layer_blocks.2.0.bias"),
            ("roi_head.mask_head.convs.0.conv.weight", 2, "roi_heads.mask_head.0.0.weight"),
            ("roi_head.bbox_head.shared_convs.0.conv.weight", 2, ""),
            ("roi_head.bbox_head.0.fc_cls.weight", 2, ""),
        ] {
            assert_eq!(name(&TORCHVISION, ours, from), theirs);
        }
        let block = "backbone.stages.2.blocks.5.";
        for (dialect, rest, theirs) in [
            (&TORCHVISION_SWIN, "attn.w_msa.qkv.bias", "features.5.5.attn.qkv.bias"),
            (&TORCHVISION_SWIN, "ffn.layers.1.bias", "features.5.5.mlp.3.bias"),
            (&TORCHVISION_SWIN, "norm2.bias", "features.5.5.norm2.bias"),
            (&PAPER, "ffn.layers.0.0.bias", "backbone.layers.2.blocks.5.mlp.fc1.bias"),
            (&SWIN, "attn.w_msa.relative_position_bias_table", "layers.2.blocks.5.attn.relative_position_bias_table"),
            (&MMDETECTION, "norm1.weight", "backbone.stages.2.blocks.5.norm1.weight"),
        ] {
            assert_eq!(name(dialect, &format!("{block}{rest}"), 2), theirs);
        }
        assert_eq!(name(&TORCHVISION_SWIN, "backbone.stages.1.downsample.norm.bias", 2), "features.4.norm.bias");
        assert_eq!(name(&TORCHVISION_SWIN, "backbone.norm3.bias", 2), "");
        assert_eq!(name(&PAPER, "backbone.norm3.bias", 2), "backbone.norm3.bias");
        assert_eq!(name(&TORCHVISION_RESNET, "backbone.bn1.bias", 2), "bn1.bias");
    }

    #[test]
    fn old_names_are_known() {
        for (old, new) in [
            ("backbone.fpn.inner_blocks.1.weight", "backbone.fpn.inner_blocks.1.0.weight"),
            ("backbone.fpn.inner_blocks.1.0.weight", "backbone.fpn.inner_blocks.1.0.weight"),
            ("rpn.head.conv.bias", "rpn.head.conv.0.0.bias"),
            ("roi_heads.mask_head.mask_fcn3.bias", "roi_heads.mask_head.2.0.bias"),
            ("head.regression_head.conv.4.weight", "head.regression_head.conv.2.0.weight"),
            ("head.regression_head.conv.2.0.weight", "head.regression_head.conv.2.0.weight"),
        ] {
            assert_eq!(TORCHVISION.newest(old), new);
        }
    }
}
