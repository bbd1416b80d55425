//! A histogram between two looks.

/// Observations by size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// The sum of all observations.
    pub sum: f64,
    /// Upper bounds and how many observations are at most that, ascending.
    below: Vec<(f64, f64)>,
}

impl Distribution {
    /// Of a sum and of cumulative counts by upper bound, in any order.
    pub fn new(sum: f64, mut below: Vec<(f64, f64)>) -> Self {
        below.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Self { sum, below }
    }

    /// How many observations there were.
    pub fn count(&self) -> f64 {
        self.below.last().map_or(0.0, |(_, count)| *count)
    }

    /// Their mean.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0.0).then(|| self.sum / count)
    }

    /// The size that a share `q` of all is at most, as `histogram_quantile` estimates it: evenly
    /// within its bucket; above the last finite bound, that bound.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = q * self.count();
        if wanted <= 0.0 {
            return None;
        }
        let (mut from, mut seen) = (0.0, 0.0);
        for &(bound, below) in &self.below {
            if below >= wanted {
                let within = below - seen;
                if bound.is_infinite() || within <= 0.0 {
                    return Some(from);
                }
                return Some(from + (bound - from) * (wanted - seen) / within);
            }
            if bound.is_finite() {
                from = bound;
            }
            seen = below;
        }
        Some(from)
    }

    /// Both together. Bounds that only one of them has are left out: their counts cannot be told.
    pub fn and(&self, other: &Self) -> Self {
        let below = self.below.iter().filter_map(|&(bound, count)| {
            let same = other.below.iter().find(|(theirs, _)| *theirs == bound)?;
            Some((bound, count + same.1))
        });
        Self::new(self.sum + other.sum, below.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let inf = f64::INFINITY;
        let of = |counts: &[(f64, f64)]| Distribution::new(10.0, counts.to_vec());
        let some = of(&[(inf, 100.0), (0.1, 50.0), (0.2, 90.0), (0.4, 100.0)]);
        assert_eq!(some.count(), 100.0);
        assert_eq!(some.mean(), Some(0.1));
        assert_eq!(some.quantile(0.5), Some(0.1));
        assert!((some.quantile(0.7).unwrap() - 0.15).abs() < 1e-9);
        assert!((some.quantile(0.95).unwrap() - 0.3).abs() < 1e-9);
        let above = of(&[(0.1, 1.0), (inf, 100.0)]);
        assert_eq!(above.quantile(0.99), Some(0.1), "the last finite bound");
        assert_eq!(of(&[(0.1, 0.0), (inf, 0.0)]).quantile(0.99), None);
        assert_eq!(of(&[]).mean(), None);
    }

    #[test]
    fn replicas_add_up() {
        let one = Distribution::new(1.0, vec![(0.1, 1.0), (f64::INFINITY, 2.0)]);
        let both = one.and(&one);
        assert_eq!((both.sum, both.count()), (2.0, 4.0));
    }
}
