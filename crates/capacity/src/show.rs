//! Numbers as people read them.

use crate::signal::{Reading, Unit};

/// `87 %`.
pub fn share(value: f64) -> String {
    format!("{:.0} %", value * 100.0)
}

/// `250 µs`, `12 ms`, `3.5 s`, `12 min`, `5 h`.
pub fn seconds(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "for ever".to_owned()
    } else if size == 0.0 {
        "0 s".to_owned()
    } else if size < 0.001 {
        format!("{:.0} µs", value * 1e6)
    } else if size < 1.0 {
        format!("{:.0} ms", value * 1e3)
    } else if size < 10.0 {
        format!("{value:.1} s")
    } else if size < 120.0 {
        format!("{value:.0} s")
    } else if size < 7_200.0 {
        format!("{:.0} min", value / 60.0)
    } else {
        format!("{:.0} h", value / 3_600.0)
    }
}

/// `512 B`, `1.5 MiB`, `3.2 TiB`.
pub fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = value;
    let mut last = "B";
    for unit in units {
        last = unit;
        if value < 1024.0 {
            break;
        }
        if unit != "PiB" {
            value /= 1024.0;
        }
    }
    if last == "B" || value >= 100.0 {
        format!("{value:.0} {last}")
    } else {
        format!("{value:.1} {last}")
    }
}

/// A whole number in groups of three: `12,000`.
pub fn count(value: f64) -> String {
    if !value.is_finite() {
        return "unknown".to_owned();
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 && grouped != "0" {
        grouped.insert(0, '-');
    }
    grouped
}

/// A value in its unit.
pub fn in_unit(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Share => share(value),
        Unit::Seconds => seconds(value),
        Unit::Count => count(value),
    }
}

/// A reading as evidence.
pub fn reading(reading: &Reading) -> String {
    let of = reading.service.map_or("", |service| service.name());
    let of = if of.is_empty() {
        reading.instance.clone()
    } else {
        format!("{of} at {}", reading.instance)
    };
    format!(
        "{}: {} ({of}), threshold {}",
        reading.what,
        in_unit(reading.value, reading.unit),
        in_unit(reading.threshold, reading.unit)
    )
}

/// Columns lined up, the first line a head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|n| {
            let cells = rows.iter().filter_map(|row| row.get(n));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text.push_str("  ");
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let times = [
            0.0,
            0.00025,
            0.0123,
            3.51,
            42.0,
            720.0,
            18_000.0,
            f64::INFINITY,
        ];
        let told: Vec<_> = times.into_iter().map(seconds).collect();
        let expected = [
            "0 s", "250 µs", "12 ms", "3.5 s", "42 s", "12 min", "5 h", "for ever",
        ];
        assert_eq!(told, expected);
        assert_eq!(count(1_234_567.0), "1,234,567");
        assert_eq!(
            (count(12.0), count(-1_000.0)),
            ("12".into(), "-1,000".into())
        );
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(1_572_864.0), "1.5 MiB");
        assert_eq!(bytes(3.2 * 1024f64.powi(4)), "3.2 TiB");
        assert_eq!(share(0.871), "87 %");
    }
}
