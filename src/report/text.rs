//! Text and numbers of the report: escaped for HTML, with a dash for what is not known.

use crate::format;

/// Text for HTML and for attributes in quotes.
pub fn escape(text: &str) -> String {
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

/// A share as per cent; a dash if it is not known (NaN, or COCO's -1).
pub(super) fn percent(v: f64) -> String {
    if v.is_finite() && v >= 0.0 { format!("{:.1}", 100.0 * v) } else { "–".into() }
}

/// Seconds; a dash if they are not known.
pub(super) fn duration(seconds: f64) -> String {
    if seconds.is_finite() && seconds >= 0.0 { format::duration(seconds) } else { "–".into() }
}

/// Bytes; a dash for 0.
pub(super) fn bytes(n: u64) -> String {
    if n == 0 { "–".into() } else { format::bytes(n as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<b a='x' c=\"&\">\u{1b}\n"), "&lt;b a=&#39;x&#39; c=&quot;&amp;&quot;&gt;\n");
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!([0.6123, -1.0, f64::NAN].map(percent), ["61.2", "–", "–"]);
        assert_eq!([59.7, 3725.0, f64::NAN].map(duration), ["1m00s", "1h02m", "–"]);
        assert_eq!([0, 1536, 3 << 30].map(bytes), ["–", "1.5 KiB", "3.0 GiB"]);
    }
}
