//! Figures that were measured several times: never one number without its spread.

use std::time::Duration;

/// Values in the order of their size, at least one.
#[derive(Debug, Clone)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// None if there are no values.
    pub(crate) fn new(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Self(values))
    }

    /// Of times, in milliseconds.
    pub(crate) fn of_millis(times: impl IntoIterator<Item = Duration>) -> Option<Self> {
        Self::new(times.into_iter().map(|time| time.as_secs_f64() * 1e3))
    }

    /// The smallest value that `percent` of the values do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    fn min(&self) -> f64 {
        self.0[0]
    }

    fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// `median (minimum–maximum)`.
    pub(crate) fn spread(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}–{:.decimals$})", self.median(), self.min(), self.max())
    }
}

/// Ratios of values that were measured next to each other, round by round: what disturbs the machine for longer than a
/// round disturbs both.
pub(crate) fn ratios(ours: &[f64], theirs: &[f64]) -> Option<Sample> {
    Sample::new(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let hundred = Sample::new((1..=100).rev().map(f64::from)).unwrap();
        for (percent, value, why) in [
            (50, 50.0, "half of the values are not above it"),
            (99, 99.0, "all but one"),
            (100, 100.0, "the largest"),
            (0, 1.0, "there is nothing below the smallest"),
        ] {
            assert!((hundred.percentile(percent) - value).abs() < f64::EPSILON, "{percent}: {why}");
        }
        assert_eq!(Sample::new([7.0]).unwrap().spread(1), "7.0 (7.0–7.0)");
        assert!(Sample::new([]).is_none());
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        assert_eq!(ratios(&[1.0, 4.0, 9.0], &[2.0, 4.0, 3.0]).unwrap().spread(2), "1.00 (0.50–3.00)");
    }
}
