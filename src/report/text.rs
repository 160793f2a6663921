//! Text and numbers as the report shows them. Numbers that are not known are shown as a dash.

use crate::format;

/// Shown in place of a number that is not known.
pub(super) const UNKNOWN: &str = "–";

/// Escapes text for HTML content and for attributes in quotes. Control characters are removed.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

/// A share as per cent with one decimal. NaN and COCO's -1 are unknown.
pub(super) fn percent(v: f64) -> String {
    if v.is_finite() && v >= 0.0 { format!("{:.1}", 100.0 * v) } else { UNKNOWN.into() }
}

/// A duration like [`format::duration`]. Negative values and values that are not finite are unknown.
pub(super) fn duration(seconds: f64) -> String {
    if seconds.is_finite() && seconds >= 0.0 { format::duration(seconds) } else { UNKNOWN.into() }
}

/// A size like [`format::bytes`]; 0 is unknown.
pub(super) fn bytes(count: u64) -> String {
    if count == 0 { UNKNOWN.into() } else { format::bytes(usize::try_from(count).unwrap_or(usize::MAX)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<b a='x' c=\"&\">\u{1b}\n"), "&lt;b a=&#39;x&#39; c=&quot;&amp;&quot;&gt;\n");
    }

    #[test]
    fn unknown_numbers_are_dashes() {
        assert_eq!([0.6123, -1.0, f64::NAN].map(percent), ["61.2", "–", "–"]);
        assert_eq!([59.7, 3725.0, -1.0, f64::NAN].map(duration), ["1m00s", "1h02m", "–", "–"]);
        assert_eq!([0, 1536, 3 << 30].map(bytes), ["–", "1.5 KiB", "3.0 GiB"]);
    }
}
