//! Sets of disjoint half-open ranges of stream offsets.

use std::collections::BTreeMap;

/// Disjoint ranges that do not touch each other (touching ones are merged).
#[derive(Debug, Default, Clone)]
pub(super) struct RangeSet {
    map: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `start..end` and calls `fresh` for every part that was not in the set, in ascending order.
    pub(super) fn insert(&mut self, start: u64, end: u64, mut fresh: impl FnMut(u64, u64)) {
        if start >= end {
            return;
        }
        let (mut lo, mut hi, mut at) = (start, end, start);
        if let Some((&s, &e)) = self.map.range(..=start).next_back() {
            if e >= end {
                return;
            }
            if e >= start {
                self.map.remove(&s);
                (lo, hi, at) = (s, hi.max(e), e);
            }
        }
        while let Some((&s, &e)) = self.map.range(lo..).next() {
            if s > hi {
                break;
            }
            if s > at {
                fresh(at, s);
            }
            at = at.max(e);
            hi = hi.max(e);
            self.map.remove(&s);
        }
        if at < end {
            fresh(at, end);
        }
        self.map.insert(lo, hi);
    }

    /// Forgets everything below `limit`.
    pub(super) fn remove_below(&mut self, limit: u64) {
        while let Some(first) = self.map.first_entry() {
            if *first.key() >= limit {
                return;
            }
            let end = first.remove();
            if end > limit {
                self.map.insert(limit, end);
                return;
            }
        }
    }

    /// The end of the range that contains `offset`.
    pub(super) fn end_of(&self, offset: u64) -> Option<u64> {
        let (_, &end) = self.map.range(..=offset).next_back()?;
        (end > offset).then_some(end)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.map.iter().map(|(&s, &e)| (s, e))
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.map.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(set: &mut RangeSet, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut fresh = Vec::new();
        set.insert(start, end, |s, e| fresh.push((s, e)));
        fresh
    }

    #[test]
    fn insertion_reports_only_what_is_new_and_merges() {
        let mut set = RangeSet::default();
        assert_eq!(insert(&mut set, 10, 20), [(10, 20)]);
        assert_eq!(insert(&mut set, 30, 40), [(30, 40)]);
        assert_eq!(insert(&mut set, 12, 18), []);
        assert_eq!(insert(&mut set, 5, 50), [(5, 10), (20, 30), (40, 50)]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(5, 50)]);
        assert_eq!(insert(&mut set, 50, 60), [(50, 60)]);
        assert_eq!(insert(&mut set, 0, 5), [(0, 5)]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(0, 60)]);
    }

    #[test]
    fn removal_trims_a_straddling_range() {
        let mut set = RangeSet::default();
        insert(&mut set, 0, 10);
        insert(&mut set, 20, 30);
        set.remove_below(25);
        assert_eq!(set.iter().collect::<Vec<_>>(), [(25, 30)]);
        assert_eq!((set.end_of(25), set.end_of(24), set.end_of(30)), (Some(30), None, None));
    }

    proptest::proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(ops in proptest::collection::vec((0u64..64, 0u64..12), 0..40)) {
            let mut set = RangeSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in ops {
                let mut fresh = Vec::new();
                set.insert(start, start + len, |s, e| fresh.extend(s..e));
                let expected: Vec<u64> = (start..start + len).filter(|x| model.insert(*x)).collect();
                proptest::prop_assert_eq!(fresh, expected);
            }
            let all: Vec<u64> = set.iter().flat_map(|(s, e)| s..e).collect();
            proptest::prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
            let ranges: Vec<_> = set.iter().collect();
            proptest::prop_assert!(ranges.windows(2).all(|w| w[0].1 < w[1].0));
        }
    }
}
