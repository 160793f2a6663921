//! Numbers as text for people: counts with their noun, durations, bytes, values in three digits.

/// A count with its noun: `1 class`, `2 classes`.
pub fn counted(n: usize, noun: &str) -> String {
    let ending = if noun.ends_with(['s', 'x']) { "es" } else { "s" };
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}{ending}") }
}

/// A value in three significant digits.
pub fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// A duration: `45s`, `3m20s`, `1h02m`, `2d03h`; `?` if it is negative or not finite.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_string();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// A size in bytes: `512 B`, `1.5 MiB`, `2.3 GiB`.
pub fn bytes(count: usize) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_nouns_agree() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "image")), ["0 images", "1 image", "2 images"]);
        assert_eq!([counted(1, "class"), counted(3, "class"), counted(2, "box")], ["1 class", "3 classes", "2 boxes"]);
    }

    #[test]
    fn numbers_are_short() {
        let durations = [0.4, 59.6, 3599.0, 3600.0, 90_000.0, f64::NAN, -1.0].map(duration);
        assert_eq!(durations, ["0s", "1m00s", "59m59s", "1h00m", "1d01h", "?", "?"]);
        assert_eq!([0, 1023, 1024, 3 << 29].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
        assert_eq!(
            [0.0, 0.02, 0.0012345, 1e-7, 12.0, 12345.6, 0.1].map(short),
            ["0", "0.02", "0.00123", "0.0000001", "12", "12346", "0.1"]
        );
    }
}
