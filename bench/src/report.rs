//! What was measured: a JSON line per figure, tables to paste, and which goals are met.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

pub struct Report {
    bar: ProgressBar,
    figures: Vec<String>,
    goals: Vec<Vec<String>>,
}

#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    pub fn new(figures: usize) -> Self {
        let bar = ProgressBar::new(figures as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}");
        Self {
            bar: style.map(|style| bar.clone().with_style(style)).unwrap_or(bar),
            figures: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// What is being done, for whom looks at a terminal.
    pub fn doing(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
        self.bar.tick();
    }

    /// The end of one of the figures that were asked for: its values for programs.
    pub fn next_figure(&mut self) {
        let figures = std::mem::take(&mut self.figures);
        if !figures.is_empty() {
            self.say(&format!("\n{}", figures.join("\n")));
        }
        self.bar.inc(1);
    }

    pub fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// One figure for programs; one that cannot be measured is none.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        if !value.is_finite() {
            return;
        }
        self.figures.push(json!({ "figure": name, "value": rounded(value), "unit": unit }).to_string());
    }

    pub fn table(&self, title: &str, columns: &[&str], rows: &[Vec<String>]) {
        self.say(&format!("\n### {title}\n\n{}", markdown(columns, rows)));
    }

    pub fn goal(&mut self, part: &str, what: &str, measured: f64, wanted: Wanted, unit: &str) {
        let (sign, limit, met) = match wanted {
            Wanted::AtLeast(limit) => ("≥", limit, measured >= limit),
            Wanted::AtMost(limit) => ("≤", limit, measured <= limit),
        };
        self.figure(&format!("goal {part}: {what}"), measured, unit);
        let unit = if matches!(unit, "×" | "") { String::new() } else { format!(" {unit}") };
        self.goals.push(vec![
            part.to_owned(),
            what.to_owned(),
            format!("{sign} {}{unit}", short(limit)),
            format!("{}{unit}", short(measured)),
            if met { "yes" } else { "**no**" }.to_owned(),
        ]);
    }

    /// What is printed at the end of a run.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if !self.goals.is_empty() {
            self.table("Goals", &["", "goal", "wanted", "measured", "met"], &self.goals);
        }
    }
}

fn markdown(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

/// Three figures that count; whole numbers as they are.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
            let groups: Vec<&str> =
                digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
            format!("{sign}{}", groups.join(","))
        }
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_keep_what_counts() {
        let shown = [0.0, 3.0, 0.034, 9.876, 12.34, 123.4, 1_234_567.8, -1234.5].map(short);
        assert_eq!(shown, ["0", "3", "0.03", "9.88", "12.3", "123", "1,234,568", "-1,234"]);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), 3.0);
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_goal_is_met_at_its_limit() {
        let mut report = Report::new(0);
        report.goal("P1", "rate", 0.85, Wanted::AtLeast(0.85), "×");
        report.goal("P1", "time", 25.1, Wanted::AtMost(25.0), "ms");
        let shown: Vec<String> = report.goals.iter().map(|goal| goal[2..].join(" ")).collect();
        assert_eq!(shown, ["≥ 0.85 0.85 yes", "≤ 25 ms 25.1 ms **no**"]);
    }
}
