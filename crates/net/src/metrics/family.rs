//! Metrics with labels, counted without a lock or an allocation once a combination was seen.
//!
//! **Forces.** Labels are made of what a request turned out to be, and it is counted on the path of
//! every one. A family of the library takes a lock and wants owned labels for each count.
//!
//! **Choice.** A table of cells that are made once and never move. **Consequence.** It is bounded:
//! combinations past its room are counted together, as `other`.

use std::fmt;
use std::sync::{Arc, OnceLock};

use caracal_model::Histogram;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

/// Combinations that are told apart.
const ROOM: usize = 1_024;
/// Cells that one combination may be looked for in.
const PROBES: usize = 16;
/// Where the rest is counted.
const OTHER: &str = "other";

/// A metric and the values of its labels, once it was counted.
type Cell<const N: usize, M> = OnceLock<([Box<str>; N], M)>;

/// Values of `N` labels, each with a metric of its own.
struct Table<const N: usize, M> {
    cells: Box<[Cell<N, M>]>,
    rest: Cell<N, M>,
}

impl<const N: usize, M: Default> Table<N, M> {
    fn new() -> Self {
        Self {
            cells: (0..ROOM).map(|_| OnceLock::new()).collect(),
            rest: OnceLock::new(),
        }
    }

    fn of(&self, values: [&str; N]) -> &M {
        let start = hash(values);
        for step in 0..PROBES {
            let Some(cell) = self.cells.get(start.wrapping_add(step) % ROOM) else {
                continue;
            };
            let (held, metric) = cell.get_or_init(|| (values.map(Box::from), M::default()));
            if held
                .iter()
                .zip(values)
                .all(|(held, value)| **held == *value)
            {
                return metric;
            }
        }
        let (_, rest) = self
            .rest
            .get_or_init(|| ([OTHER; N].map(Box::from), M::default()));
        rest
    }

    fn iter(&self) -> impl Iterator<Item = &([Box<str>; N], M)> {
        let cells = self.cells.iter().filter_map(OnceLock::get);
        cells.chain(self.rest.get())
    }
}

/// FNV-1a: short keys, and nobody gains by collisions that cost sixteen looks.
fn hash<const N: usize>(values: [&str; N]) -> usize {
    let bytes = values.iter().flat_map(|value| value.bytes().chain([0xff]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash >> 32).unwrap_or(0)
}

/// Counters by `N` labels.
#[derive(Clone)]
pub struct Counts<const N: usize> {
    names: [&'static str; N],
    table: Arc<Table<N, Counter>>,
}

impl<const N: usize> Counts<N> {
    /// By labels of these names.
    pub fn by(names: [&'static str; N]) -> Self {
        Self {
            names,
            table: Arc::new(Table::new()),
        }
    }

    /// The counter of these values. They have to be of a small set.
    pub fn of(&self, values: [&str; N]) -> &Counter {
        self.table.of(values)
    }
}

/// Histograms by `N` labels, those of durations.
#[derive(Clone)]
pub struct Histograms<const N: usize> {
    names: [&'static str; N],
    table: Arc<Table<N, Histogram>>,
}

impl<const N: usize> Histograms<N> {
    /// By labels of these names.
    pub fn by(names: [&'static str; N]) -> Self {
        Self {
            names,
            table: Arc::new(Table::new()),
        }
    }

    /// The histogram of these values. They have to be of a small set.
    pub fn of(&self, values: [&str; N]) -> &Histogram {
        self.table.of(values)
    }
}

/// Histograms that are kept elsewhere, under fixed labels.
#[derive(Clone)]
pub(super) struct Shown<const N: usize>(pub Vec<([(&'static str, &'static str); N], Histogram)>);

macro_rules! opaque {
    ($($name:ident)+) => {
        $(impl<const N: usize> fmt::Debug for $name<N> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        })+
    };
}

opaque! { Counts Histograms Shown }

fn labels<'v, const N: usize>(
    names: [&'static str; N],
    values: &'v [Box<str>; N],
) -> Vec<(&'static str, &'v str)> {
    names
        .into_iter()
        .zip(values.iter().map(AsRef::as_ref))
        .collect()
}

impl<const N: usize> EncodeMetric for Counts<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (values, counter) in self.table.iter() {
            let labels = labels(self.names, values);
            let mut one = encoder.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, _, u64>(&counter.get(), None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl<const N: usize> EncodeMetric for Histograms<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (values, histogram) in self.table.iter() {
            let labels = labels(self.names, values);
            encode(&mut encoder.encode_family(&labels)?, histogram)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl<const N: usize> EncodeMetric for Shown<N> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, histogram) in &self.0 {
            // Braces without a label in them are not pretty.
            if N == 0 {
                encode(&mut encoder, histogram)?;
            } else {
                encode(&mut encoder.encode_family(labels)?, histogram)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn encode(encoder: &mut MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let held = histogram.held();
    encoder.encode_histogram::<NoLabelSet>(held.sum, held.count, &held.buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_combination_keeps_its_cell_and_the_table_its_bound() {
        let counts = Counts::by(["outcome", "reason"]);
        counts.of(["allow", ""]).inc();
        counts.of(["deny", "access_denied"]).inc_by(2);
        counts.of(["allow", ""]).inc();
        assert_eq!(counts.of(["allow", ""]).get(), 2);
        assert_eq!(counts.of(["deny", "access_denied"]).get(), 2);
        for n in 0..10 * ROOM {
            counts.of(["deny", &n.to_string()]).inc();
        }
        let all: u64 = counts.table.iter().map(|(_, count)| count.get()).sum();
        assert_eq!(all, 4 + 10 * ROOM as u64);
        assert!(counts.table.iter().count() <= ROOM + 1);
        assert_eq!(counts.of(["allow", ""]).get(), 2);
    }
}
