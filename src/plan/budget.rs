//! Chooses one of several ways to store each tensor, so that all fit a size with the least error: the
//! multiple-choice knapsack problem. Lagrangian relaxation (Sinha and Zoltners 1979) settles nearly
//! all tensors; those that it is least sure of are then tried in all combinations that can be better.

/// The limits that formats are chosen by. Without a limit: the smallest size at which every tensor
/// reaches its `min_cosine`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// The most bytes of the file.
    pub max_size: Option<u64>,
    /// The average bits per weight, over the tensors that the budget decides on.
    pub avg_bits: Option<f64>,
    /// The most bytes of the planes of those tensors.
    pub planes: Option<u64>,
}

/// Size and error of one way to store a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Bytes of the planes.
    pub bytes: u64,
    /// Error, in any additive unit; finite and at least 0.
    pub error: f64,
}

/// The number of tensors whose ways are tried in all combinations.
const CORE: usize = 48;

/// The most combinations held at once; beyond that, the most promising ones are.
const HELD: usize = 1 << 14;

/// Chooses a way for each tensor, or returns `None` if not even the smallest fit. Deterministic: if
/// several are equally good, the first wins.
pub fn spend(items: &[Vec<Cost>], limit: u64) -> Option<Vec<usize>> {
    let fronts: Vec<Vec<Way>> = items.iter().map(|ways| front(ways)).collect();
    let smallest = |front: &Vec<Way>| front.first().map_or(0, |way| way.cost.bytes);
    let least = fronts.iter().map(smallest).fold(0, u64::saturating_add);
    let room = limit.checked_sub(least)?;
    let mut chosen = Chosen {
        at: vec![0; fronts.len()],
        fronts,
        room,
    };
    let slope = chosen.climb();
    chosen.fill();
    chosen.settle(slope);
    let index = |(front, &at): (&Vec<Way>, &usize)| front.get(at).map_or(0, |way| way.index);
    Some(chosen.fronts.iter().zip(&chosen.at).map(index).collect())
}

/// A way to store a tensor that no other one beats in both bytes and error.
#[derive(Debug, Clone, Copy)]
struct Way {
    cost: Cost,
    /// Index among the given ways.
    index: usize,
}

/// Returns the ways worth choosing, by rising bytes and falling error.
fn front(ways: &[Cost]) -> Vec<Way> {
    let mut all: Vec<Way> = ways
        .iter()
        .enumerate()
        .map(|(index, &cost)| Way { cost, index })
        .collect();
    all.sort_by(|a, b| {
        let bytes = a.cost.bytes.cmp(&b.cost.bytes);
        bytes.then(a.cost.error.total_cmp(&b.cost.error))
    });
    let mut front: Vec<Way> = Vec::new();
    for way in all {
        if front
            .last()
            .is_none_or(|last| way.cost.error < last.cost.error)
        {
            front.push(way);
        }
    }
    front
}

/// Returns the error saved per byte by going from one way to a larger one.
fn saved_per_byte(from: Cost, to: Cost) -> f64 {
    (from.error - to.error) / (to.bytes - from.bytes) as f64
}

/// Returns the steps along the lower convex hull of a front, as pairs from, to.
fn hull_steps(front: &[Way]) -> Vec<(usize, usize)> {
    let mut hull: Vec<usize> = Vec::new();
    for at in 0..front.len() {
        while let [.., before, last] = hull[..] {
            let [a, b, c] = [before, last, at].map(|at| front[at].cost);
            if saved_per_byte(a, b) > saved_per_byte(b, c) {
                break;
            }
            hull.pop();
        }
        hull.push(at);
    }
    hull.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// The current choice, and the room it leaves.
struct Chosen {
    /// The ways of each tensor.
    fronts: Vec<Vec<Way>>,
    /// The chosen way of each tensor.
    at: Vec<usize>,
    /// Bytes left.
    room: u64,
}

impl Chosen {
    fn cost(&self, item: usize) -> Cost {
        self.fronts[item][self.at[item]].cost
    }

    fn take(&mut self, item: usize, at: usize) {
        let (before, after) = (self.cost(item).bytes, self.fronts[item][at].cost.bytes);
        self.room = self.room + before - after;
        self.at[item] = at;
    }

    /// Takes steps along the hulls by falling error saved per byte, as far as they fit. Returns the
    /// error per byte that the first step that did not fit would have saved: the price of a byte.
    fn climb(&mut self) -> f64 {
        let mut steps = Vec::new();
        for (item, front) in self.fronts.iter().enumerate() {
            for (from, to) in hull_steps(front) {
                let slope = saved_per_byte(front[from].cost, front[to].cost);
                steps.push((slope, item, from, to));
            }
        }
        // The sort is stable: the steps of a tensor stay in order, and the first tensor comes
        // first.
        steps.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut price = None;
        for (slope, item, from, to) in steps {
            if self.at[item] != from {
                continue; // one before it did not fit
            }
            let bytes = self.fronts[item][to].cost.bytes - self.fronts[item][from].cost.bytes;
            match bytes <= self.room {
                true => self.take(item, to),
                false => price = price.or(Some(slope)),
            }
        }
        price.unwrap_or(0.0)
    }

    /// Spends the remaining bytes on the steps that save most per byte.
    fn fill(&mut self) {
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for (item, front) in self.fronts.iter().enumerate() {
                let Some(now) = front.get(self.at[item]) else {
                    continue;
                };
                for (at, way) in front.iter().enumerate().skip(self.at[item] + 1) {
                    if way.cost.bytes - now.cost.bytes > self.room {
                        break;
                    }
                    let slope = saved_per_byte(now.cost, way.cost);
                    if best.is_none_or(|best| slope > best.0) {
                        best = Some((slope, item, at));
                    }
                }
            }
            match best {
                Some((_, item, at)) => self.take(item, at),
                None => return,
            }
        }
    }

    /// Tries all combinations of the tensors whose choice costs least to change, at the price of a
    /// byte. Combinations that cannot beat the current choice are dropped early.
    fn settle(&mut self, price: f64) {
        let priced = |cost: Cost| cost.error + price * cost.bytes as f64;
        let mut core: Vec<(f64, usize)> = Vec::new();
        for (item, front) in self.fronts.iter().enumerate() {
            if front.len() < 2 {
                continue;
            }
            let now = priced(self.cost(item));
            let others = front
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != self.at[item]);
            let next = others.map(|(_, way)| priced(way.cost) - now);
            core.push((next.fold(f64::INFINITY, f64::min), item));
        }
        core.sort_by(|a, b| a.0.total_cmp(&b.0));
        core.truncate(CORE);
        let core: Vec<usize> = core.into_iter().map(|(_, item)| item).collect();
        let room = self.room + core.iter().map(|&item| self.cost(item).bytes).sum::<u64>();
        let known: f64 = core.iter().map(|&item| self.cost(item).error).sum();
        let fronts: Vec<&[Way]> = core.iter().map(|&item| &self.fronts[item][..]).collect();
        if let Some(found) = combinations(&fronts, room, price, known) {
            for (item, at) in core.into_iter().zip(found) {
                // The order of steps does not matter here: only the total room counts.
                self.at[item] = at;
            }
        }
    }
}

/// A combination of ways of the first few tensors.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    error: f64,
    /// The combination that this one extends, and the way that it adds.
    before: u32,
    at: u32,
}

/// Finds the best combination within `room` bytes, if its error is below `known`.
fn combinations(fronts: &[&[Way]], room: u64, price: f64, known: f64) -> Option<Vec<usize>> {
    let smallest = |front: &[Way]| front.iter().map(|way| way.cost.bytes).min().unwrap_or(0);
    let priced = |front: &[Way]| {
        let costs = front
            .iter()
            .map(|way| way.cost.error + price * way.cost.bytes as f64);
        costs.fold(f64::INFINITY, f64::min)
    };
    // Lower bounds on the bytes and the cost of the tensors that follow.
    let (mut bytes_after, mut priced_after) = (vec![0; fronts.len()], vec![0.0; fronts.len()]);
    for i in (1..fronts.len()).rev() {
        bytes_after[i - 1] = bytes_after[i] + smallest(fronts[i]);
        priced_after[i - 1] = priced_after[i] + priced(fronts[i]);
    }
    let mut levels: Vec<Vec<State>> = Vec::with_capacity(fronts.len());
    let mut states = vec![State {
        bytes: 0,
        error: 0.0,
        before: 0,
        at: 0,
    }];
    for (i, front) in fronts.iter().enumerate() {
        let mut next = Vec::new();
        for (before, state) in states.iter().enumerate() {
            for (at, way) in front.iter().enumerate() {
                let (bytes, error) = (state.bytes + way.cost.bytes, state.error + way.cost.error);
                let bound = least_error(bytes, error, priced_after[i], price, room);
                if bytes + bytes_after[i] <= room && bound < known {
                    let (before, at) = (before as u32, at as u32);
                    next.push(State {
                        bytes,
                        error,
                        before,
                        at,
                    });
                }
            }
        }
        let bound =
            |state: &State| least_error(state.bytes, state.error, priced_after[i], price, room);
        let next = undominated(next, bound);
        levels.push(std::mem::replace(&mut states, next));
    }
    let (mut index, best) = (states.iter().enumerate())
        .min_by(|a, b| a.1.error.total_cmp(&b.1.error))
        .map(|(index, state)| (index, state.error))?;
    if best >= known {
        return None;
    }
    levels.push(states);
    let mut found = vec![0; fronts.len()];
    for i in (0..fronts.len()).rev() {
        let state = levels[i + 1][index];
        (found[i], index) = (state.at as usize, state.before as usize);
    }
    Some(found)
}

/// Returns a lower bound on the error of a completed combination: the bytes left are worth at most
/// their price.
fn least_error(bytes: u64, error: f64, priced_after: f64, price: f64, room: u64) -> f64 {
    error + priced_after - price * room.saturating_sub(bytes) as f64
}

/// Drops states that another one beats in bytes and error, and limits their number.
fn undominated(mut states: Vec<State>, bound: impl Fn(&State) -> f64) -> Vec<State> {
    states.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error)));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let better = state.error < least;
        least = least.min(state.error);
        better
    });
    if states.len() > HELD {
        states.sort_by(|a, b| bound(a).total_cmp(&bound(b)));
        states.truncate(HELD);
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn total(items: &[Vec<Cost>], chosen: &[usize]) -> Cost {
        let costs = items.iter().zip(chosen).map(|(ways, &at)| ways[at]);
        costs.fold(
            Cost {
                bytes: 0,
                error: 0.0,
            },
            |sum, cost| Cost {
                bytes: sum.bytes + cost.bytes,
                error: sum.error + cost.error,
            },
        )
    }

    /// Returns the least error of all combinations.
    fn brute_force(items: &[Vec<Cost>], limit: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else {
            return Some(0.0);
        };
        let each = first.iter().filter_map(|way| {
            let rest = brute_force(rest, limit.checked_sub(way.bytes)?)?;
            Some(way.error + rest)
        });
        each.reduce(f64::min)
    }

    /// Makes tensors of very different sizes, with errors that mostly fall with bytes.
    fn instance(random: &mut ChaCha8Rng) -> (Vec<Vec<Cost>>, u64) {
        let items: Vec<Vec<Cost>> = (0..random.random_range(1..=7))
            .map(|_| {
                let weights = 1u64 << random.random_range(4..14);
                let weight = random.random_range(0.1..10.0) * weights as f64;
                let way = |random: &mut ChaCha8Rng| {
                    let bits = random.random_range(2.0..16.0);
                    Cost {
                        bytes: (weights as f64 * bits / 8.0) as u64,
                        error: weight * (-1.3f64 * bits).exp() * random.random_range(0.5..2.0),
                    }
                };
                (0..random.random_range(1..=6))
                    .map(|_| way(random))
                    .collect()
            })
            .collect();
        let extreme = |fold: fn(u64, u64) -> u64| -> u64 {
            let of = |ways: &Vec<Cost>| ways.iter().map(|way| way.bytes).reduce(fold);
            items.iter().filter_map(of).sum()
        };
        let (least, most) = (extreme(u64::min), extreme(u64::max));
        let limit = random.random_range(least.saturating_sub(most / 50)..=most);
        (items, limit)
    }

    #[test]
    fn as_good_as_brute_force_on_small_instances() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut possible = 0;
        for case in 0..400 {
            let (items, limit) = instance(&mut random);
            let best = brute_force(&items, limit);
            let found = spend(&items, limit);
            assert_eq!(found.is_some(), best.is_some(), "case {case}");
            let (Some(found), Some(best)) = (found, best) else {
                continue;
            };
            let found = total(&items, &found);
            assert!(found.bytes <= limit, "case {case}");
            assert!(
                found.error <= best * (1.0 + 1e-9),
                "case {case}: {} {best}",
                found.error
            );
            possible += 1;
        }
        assert!(possible > 300, "{possible}");
    }

    #[test]
    fn near_the_bound_on_large_instances() {
        let mut random = ChaCha8Rng::seed_from_u64(8);
        let items: Vec<Vec<Cost>> = (0..2000)
            .map(|_| instance(&mut random).0.remove(0))
            .collect();
        let least: u64 = items
            .iter()
            .map(|ways| ways.iter().map(|w| w.bytes).min().unwrap())
            .sum();
        for times in [1.01, 1.5, 2.5] {
            let limit = (least as f64 * times) as u64;
            let found = total(&items, &spend(&items, limit).unwrap());
            assert!(found.bytes <= limit);
            // This is a lower bound for any price of a byte; the best of a dense grid is used.
            let bound = |price: f64| -> f64 {
                let each = items.iter().map(|ways| {
                    let priced = ways.iter().map(|w| w.error + price * w.bytes as f64);
                    priced.fold(f64::INFINITY, f64::min)
                });
                each.sum::<f64>() - price * limit as f64
            };
            let prices = (0..4000).map(|i| 10f64.powf(-8.0 + f64::from(i) * 0.0025));
            let best = prices.map(bound).fold(0.0, f64::max);
            assert!(
                found.error < best * 1.001,
                "{times}: {} {best}",
                found.error
            );
        }
    }

    #[test]
    fn what_fits_by_hand() {
        let way = |bytes, error| Cost { bytes, error };
        let items = [
            vec![way(10, 9.0), way(20, 1.0)],
            vec![way(10, 5.0), way(20, 4.0), way(30, 3.5)],
        ];
        assert_eq!(spend(&items, 19), None);
        assert_eq!(spend(&items, 20), Some(vec![0, 0]));
        assert_eq!(spend(&items, 30), Some(vec![1, 0]));
        assert_eq!(spend(&items, 40), Some(vec![1, 1]));
        assert_eq!(spend(&items, 1000), Some(vec![1, 2]));
        // A larger and worse way is never chosen; of equal ways the first is.
        assert_eq!(
            spend(&[vec![way(5, 1.0), way(5, 1.0), way(9, 2.0)]], 9),
            Some(vec![0])
        );
        assert_eq!(spend(&[], 0), Some(vec![]));
    }
}
