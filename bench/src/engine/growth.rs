//! How ours grows: throughput against streams, and the time of a decode step against the context, which shall lie on a
//! straight line (attention) over a constant (all else).

use super::contestant::ours;
use super::load::Load;
use super::precision::Precision;
use super::server::Server;
use super::{Options, Plan, STREAMS_MAX};
use crate::BenchError;
use crate::row::Row;
use crate::stats::Summary;

/// Steps whose time is taken.
const STEPS: usize = 32;
const CONTEXTS: [usize; 5] = [128, 2_048, 8_192, 16_384, 32_640];

/// The rows of both.
pub async fn measure(options: &Options, precision: Precision) -> Result<Vec<Row>, BenchError> {
    let streams: Vec<Load> =
        (0..).map(|power| 1 << power).take_while(|n| *n <= STREAMS_MAX).map(|n| Load::new(n, 16, STEPS)).collect();
    let fits = |context: &usize| context + 1 + STEPS <= options.shape.positions;
    let contexts: Vec<usize> = CONTEXTS.into_iter().filter(fits).collect();
    let deepest = contexts.last().map(|context| Load::new(1, *context, 1 + STEPS));
    let mut server =
        ours(options, &Plan::of(&options.shape, precision, streams.iter().chain(&deepest)), precision).await?;
    server.take(&Load::new(1, 16, 2)).await?;
    let mut rows = against_streams(&mut server, &streams, precision, options.runs).await?;
    rows.extend(against_context(&mut server, &contexts, precision, options.runs).await?);
    server.stop().await;
    Ok(rows)
}

async fn against_streams(
    server: &mut Server,
    loads: &[Load],
    precision: Precision,
    runs: usize,
) -> Result<Vec<Row>, BenchError> {
    let mut rates = vec![Vec::new(); loads.len()];
    for _ in 0..runs {
        for (rates, load) in rates.iter_mut().zip(loads) {
            rates.push(load.completed() as f64 / server.take(load).await?);
        }
    }
    let mut single = None;
    let row = |(load, rates): (&Load, Vec<f64>)| {
        let rate = Summary::of(rates);
        let name = format!("growth.{}.streams_{}", precision.name(), load.streams);
        let mut row = Row::new(name, rate.p50, "tokens/s", rate.count, rate.deviation);
        (row.against, row.ratio) = (Some("1 stream".into()), Some(rate.p50 / *single.get_or_insert(rate.p50)));
        row
    };
    Ok(loads.iter().zip(rates).map(row).collect())
}

/// Each context's prompt is in the cache when it is timed, so that only the steps after it count.
async fn against_context(
    server: &mut Server,
    contexts: &[usize],
    precision: Precision,
    runs: usize,
) -> Result<Vec<Row>, BenchError> {
    let load = |context: usize, completion| Load { shared: context, ..Load::new(1, context, completion) };
    let mut times = vec![Vec::new(); contexts.len()];
    for context in contexts {
        server.take(&load(*context, 1)).await?;
    }
    for _ in 0..runs {
        for (times, context) in times.iter_mut().zip(contexts) {
            let long = server.take(&load(*context, 1 + STEPS)).await?;
            let short = server.take(&load(*context, 1)).await?;
            times.push((long - short).max(0.0) * 1e3 / STEPS as f64);
        }
    }
    let times: Vec<Summary> = times.into_iter().map(Summary::of).collect();
    let points: Vec<(f64, f64)> =
        contexts.iter().zip(&times).map(|(context, time)| (*context as f64, time.p50)).collect();
    let mut rows: Vec<Row> = contexts
        .iter()
        .zip(&times)
        .map(|(context, time)| {
            let name = format!("growth.{}.step_at_{context}", precision.name());
            Row::new(name, time.p50, "ms", time.count, time.deviation)
        })
        .collect();
    if let Some((slope, deviation)) = line(&points) {
        let row =
            |what, value, unit| Row::new(format!("growth.{}.{what}", precision.name()), value, unit, points.len(), 0.0);
        rows.push(row("step_per_1000_tokens", slope * 1e3, "ms"));
        rows.push(row("step_off_the_line", 100.0 * deviation, "%"));
    }
    Ok(rows)
}

/// The line through at least three points that is nearest to all as shares of their values: its slope, and the largest
/// such distance of a point.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    if points.len() < 3 || points.iter().any(|point| point.1 <= 0.0) {
        return None;
    }
    let weights = points.iter().map(|point| point.1.powi(-2)).sum::<f64>();
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(|p| of(p) * p.1.powi(-2)).sum::<f64>() / weights;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let slope = (mean(|p| p.0 * p.1) - x * y) / (mean(|p| p.0 * p.0) - x * x);
    let off = points.iter().map(|p| ((y + slope * (p.0 - x)) / p.1 - 1.0).abs());
    Some((slope, off.fold(0.0, f64::max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_line_is_found_and_a_bend_is_seen() {
        let straight: Vec<(f64, f64)> = [0.0, 10.0, 40.0].iter().map(|x| (*x, 3.0 + 0.5 * x)).collect();
        let (slope, off) = line(&straight).unwrap();
        assert!((slope - 0.5).abs() < 1e-9 && off < 1e-9);
        // A little more at the far end is a little off, however small the constant is.
        let (_, off) =
            line(&[(128.0, 0.37), (2_048.0, 1.29), (8_192.0, 4.47), (16_384.0, 8.56), (32_640.0, 17.5)]).unwrap();
        assert!(off < 0.06, "{off}");
        let bent: Vec<(f64, f64)> = [1.0, 10.0, 40.0].iter().map(|x| (*x, x * x)).collect();
        assert!(line(&bent).unwrap().1 > 0.2);
        assert_eq!(line(&straight[..2]), None);
    }
}
