//! What a run amounts to: rows for scripts, a table for people, both of the same values.

use crate::row::Row;
use crate::stats::Summary;

/// The name of what is ours among the contestants.
pub const OURS: &str = "ours";

/// Of samples that are there.
pub(crate) fn summary(samples: &[f64]) -> Option<Summary> {
    (!samples.is_empty()).then(|| Summary::of(samples.to_vec()))
}

/// Samples of one contestant.
pub struct Series {
    name: String,
    samples: Vec<f64>,
}

impl Series {
    /// In the figure's unit.
    pub fn new(name: &str, samples: Vec<f64>) -> Self {
        Self { name: name.to_owned(), samples }
    }
}

/// One figure of all contestants, ours first.
pub struct Compared {
    /// What is compared, such as a precision and a figure.
    pub name: String,
    /// Of all samples.
    pub unit: &'static str,
    /// Or less is.
    pub more_is_better: bool,
    /// Ours first; empty where a contestant does not run the load.
    pub series: Vec<Series>,
    /// The machine's limit in the same unit, by name.
    pub limit: Option<(&'static str, f64)>,
}

impl Compared {
    fn ratio(&self, ours: f64, other: f64) -> f64 {
        if self.more_is_better { ours / other } else { other / ours }
    }

    /// Ours, once against each other contestant and limit; and the others', under their names.
    fn rows(&self, scope: &str) -> Vec<Row> {
        let row = |name: String, s: &Summary| Row::new(name, s.p50, self.unit, s.count, s.deviation);
        let mut rows = Vec::new();
        let Some(ours) = self.series.first().and_then(|series| summary(&series.samples)) else { return rows };
        let mut against = |name: &str, other: Option<f64>| {
            let mut row = row(format!("{scope}.{}", self.name), &ours);
            row.against = other.is_some().then(|| name.to_owned());
            row.ratio = other.map(|other| self.ratio(ours.p50, other));
            rows.push(row);
        };
        let others: Vec<(&str, Summary)> =
            self.series[1..].iter().filter_map(|series| Some((&*series.name, summary(&series.samples)?))).collect();
        others.iter().for_each(|(name, other)| against(name, Some(other.p50)));
        if let Some((name, limit)) = self.limit {
            against(name, Some(limit));
        }
        if others.is_empty() && self.limit.is_none() {
            against("", None);
        }
        rows.extend(others.iter().map(|(name, other)| row(format!("{name}.{}", self.name), other)));
        rows
    }
}

/// All figures of a run.
pub struct Report {
    /// First part of the names of our rows, such as `engine`.
    pub scope: &'static str,
    /// What was run, in a line.
    pub heading: String,
    /// What contestants were compared by.
    pub compared: Vec<Compared>,
    /// What stands for itself.
    pub rows: Vec<Row>,
    /// Who was not there, and why.
    pub absent: Vec<(String, String)>,
}

impl Report {
    /// Without figures yet.
    pub fn new(scope: &'static str, heading: String) -> Self {
        Self { scope, heading, compared: Vec::new(), rows: Vec::new(), absent: Vec::new() }
    }

    /// All rows; a peer that was not there has one of value 0.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.compared.iter().flat_map(|of| of.rows(self.scope)).collect();
        rows.extend(self.rows.iter().cloned());
        rows.extend(self.absent.iter().map(|(name, _)| Row::new(format!("{name}.present"), 0.0, "peers", 1, 0.0)));
        rows
    }

    /// A Markdown table of what was compared, then the rest.
    pub fn table(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for series in self.compared.iter().flat_map(|compared| &compared.series) {
            if !names.contains(&&*series.name) && !series.samples.is_empty() {
                names.push(&series.name);
            }
        }
        let mut text = format!("{}\n\n", self.heading);
        if !self.compared.is_empty() {
            text += &format!("| figure | {} | against the best | of the limit |\n", names.join(" | "));
            text += &format!("| --- |{}\n", " --- |".repeat(names.len() + 2));
        }
        for compared in &self.compared {
            let value = |name: &&str| {
                let found = compared.series.iter().find(|series| series.name == **name);
                found.and_then(|series| summary(&series.samples))
            };
            let cell = |name: &&str| {
                value(name).map_or("–".into(), |s| format!("{} ± {}", short(s.p50), short(s.deviation)))
            };
            let cells: Vec<String> = names.iter().map(cell).collect();
            let ours = value(&OURS);
            let against = |other: f64| ours.map(|ours| compared.ratio(ours.p50, other));
            let others = names.iter().filter(|name| **name != OURS).filter_map(value);
            let best = others.filter_map(|other| against(other.p50)).reduce(f64::min);
            let best = best.map_or("–".into(), |ratio| format!("{ratio:.2} ×"));
            let limit =
                compared.limit.and_then(|(name, limit)| Some(format!("{:.0} % ({name})", 100.0 * against(limit)?)));
            text += &format!(
                "| {}, {} | {} | {best} | {} |\n",
                compared.name,
                compared.unit,
                cells.join(" | "),
                limit.unwrap_or("–".into())
            );
        }
        text += "\n";
        for row in &self.rows {
            let ratio = row
                .ratio
                .map_or(String::new(), |ratio| format!(", {ratio:.2} × {}", row.against.as_deref().unwrap_or("")));
            text += &format!("{}: {} {}{ratio}\n", row.name, short(row.value), row.unit);
        }
        for (name, reason) in &self.absent {
            text += &format!("absent: {name}: {reason}\n");
        }
        text
    }
}

/// Three digits, or all before the point.
fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(more_is_better: bool) -> Compared {
        let series = [(OURS, vec![1.0, 3.0, 2.0]), ("a", vec![4.0]), ("b", vec![1.0]), ("c", vec![])];
        let series = series.into_iter().map(|(name, samples)| Series::new(name, samples)).collect();
        Compared { name: "f32.x".into(), unit: "u", more_is_better, series, limit: Some(("most", 8.0)) }
    }

    #[test]
    fn ratios_are_larger_where_ours_is_better() {
        let ratios =
            |rows: Vec<Row>| rows.into_iter().filter_map(|row| Some((row.against?, row.ratio?))).collect::<Vec<_>>();
        let named =
            |list: &[(&str, f64)]| list.iter().map(|(name, ratio)| ((*name).to_owned(), *ratio)).collect::<Vec<_>>();
        assert_eq!(ratios(compared(true).rows("engine")), named(&[("a", 0.5), ("b", 2.0), ("most", 0.25)]));
        assert_eq!(ratios(compared(false).rows("engine")), named(&[("a", 2.0), ("b", 0.5), ("most", 4.0)]));
        let rows = compared(true).rows("engine");
        assert_eq!((rows[0].name.as_str(), rows[0].value, rows[0].runs), ("engine.f32.x", 2.0, 3));
        assert_eq!((rows[3].name.as_str(), rows[3].value), ("a.f32.x", 4.0));
        assert_eq!(rows.len(), 5, "a contestant without samples has no row");
    }

    #[test]
    fn the_table_compares_with_the_best_and_names_who_is_absent() {
        let report = Report {
            scope: "engine",
            compared: vec![compared(true)],
            rows: vec![Row::new("limit.f32.read", 28.25, "GB/s", 2, 0.0)],
            heading: "m".into(),
            absent: vec![("d".into(), "not installed".into())],
        };
        let table = report.table();
        assert!(
            table.contains("| f32.x, u | 2.00 ± 0.82 | 4.00 ± 0.00 | 1.00 ± 0.00 | 0.50 × | 25 % (most) |"),
            "{table}"
        );
        assert!(
            table.contains("limit.f32.read: 28.2 GB/s\n") && table.contains("absent: d: not installed\n"),
            "{table}"
        );
        assert!(report.rows().iter().any(|row| row.name == "d.present" && row.value == 0.0));
    }
}
