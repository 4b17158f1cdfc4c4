//! Evolutionary search over the formats of tensors, for a fitness that is not a sum over tensors,
//! such as the metric of a sampler. The best fifth of a population are parents; half of their
//! children are crossed, half mutated; parents stay until children are better.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// The index of each tensor's way, by rising bytes.
pub type Genes = Vec<u16>;

/// Options of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evolve {
    /// Candidates tried in each generation, at least 2.
    pub population: usize,
    /// Generations after the first.
    pub generations: usize,
    /// Seed of all random choices; with the same seed the search is the same.
    pub seed: u64,
    /// The most bytes of a candidate; `None` without a limit.
    pub limit: Option<u64>,
}

impl Default for Evolve {
    fn default() -> Self {
        Self {
            population: 50,
            generations: 10,
            seed: 0,
            limit: None,
        }
    }
}

/// Chance that a gene of a mutated child is redrawn.
const MUTATION: f64 = 0.1;

/// A candidate and its fitness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Individual {
    /// The genes.
    pub genes: Genes,
    /// The fitness; higher is better.
    pub fitness: f64,
}

/// The result of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Number of the generation; 0 is the start.
    pub generation: usize,
    /// The best fitness so far.
    pub best: f64,
    /// Mean fitness of the next generation's parents.
    pub mean: f64,
    /// Bytes of the best candidate's tensors.
    pub bytes: u64,
    /// Distinct candidates tried so far.
    pub evaluations: usize,
}

/// Fitness of candidates, in their order; `None` for those that were not tried before the end.
pub type Scored = Vec<Option<f64>>;

/// A search in progress. It can be saved after any generation, and continues identically.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Population {
    /// Identifies the search, beyond the other fields.
    identity: String,
    options: Evolve,
    /// Bytes of the ways of each tensor, in rising order.
    ways: Vec<Vec<u64>>,
    /// The best candidates so far, best first.
    parents: Vec<Individual>,
    history: Vec<Generation>,
    /// All tried candidates, with their fitness.
    #[serde(with = "as_list")]
    known: BTreeMap<Genes, f64>,
}

/// Stores a map as a list, because JSON keys must be text.
mod as_list {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        known: &BTreeMap<Genes, f64>,
        to: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        to.collect_seq(known)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> std::result::Result<BTreeMap<Genes, f64>, D::Error> {
        Vec::deserialize(from).map(|list: Vec<(Genes, f64)>| list.into_iter().collect())
    }
}

impl Population {
    /// Makes a search that has not begun, over tensors whose ways have these bytes, in rising
    /// order. `identity` distinguishes it from others with the same sizes.
    pub fn new(ways: Vec<Vec<u64>>, options: Evolve, identity: String) -> Self {
        Self {
            identity,
            options,
            ways,
            parents: Vec::new(),
            history: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    /// Whether `other` is the same search with the same options, except its length.
    pub fn is_of(&self, other: &Self) -> bool {
        let options = Evolve {
            generations: self.options.generations,
            ..other.options
        };
        let same = self.identity == other.identity && self.ways == other.ways;
        same && self.options == options && self.is_whole()
    }

    /// Whether a search that was read could have been written.
    fn is_whole(&self) -> bool {
        let fits = |genes: &Genes| {
            let each = genes.iter().zip(&self.ways);
            genes.len() == self.ways.len()
                && each.clone().all(|(&at, ways)| usize::from(at) < ways.len())
        };
        let begun = [
            self.history.is_empty(),
            self.parents.is_empty(),
            self.known.is_empty(),
        ];
        let known = |parent: &Individual| self.known.get(&parent.genes) == Some(&parent.fitness);
        begun.iter().all(|empty| *empty == begun[0])
            && self.parents.iter().all(known)
            && self
                .known
                .iter()
                .all(|(genes, fitness)| fits(genes) && fitness.is_finite())
    }

    /// The results of all generations.
    pub fn history(&self) -> &[Generation] {
        &self.history
    }

    /// The best candidate so far; `None` before the first generation.
    pub fn best(&self) -> Option<&Individual> {
        self.parents.first()
    }

    /// The fitness of a candidate, if it was tried.
    pub fn fitness(&self, genes: &Genes) -> Option<f64> {
        self.known.get(genes).copied()
    }

    /// The bytes of a candidate.
    pub fn bytes(&self, genes: &[u16]) -> u64 {
        let bytes = self
            .ways
            .iter()
            .zip(genes)
            .map(|(ways, &at)| ways[usize::from(at)]);
        bytes.fold(0, u64::saturating_add)
    }

    /// Continues until this number of generations, or until `score` omits a candidate, or until
    /// `told`, which is called after each generation, returns false. The first generation has the
    /// candidates in `start` in addition to random ones.
    ///
    /// # Errors
    /// Returns the errors of `score` and `told`.
    pub fn run(
        &mut self,
        generations: usize,
        start: &[Genes],
        mut score: impl FnMut(&[Genes]) -> Result<Scored>,
        mut told: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        self.options.generations = generations;
        while self.history.len() <= generations {
            let mut random = ChaCha8Rng::seed_from_u64(self.options.seed);
            random.set_stream(self.history.len() as u64);
            let children = match self.parents.is_empty() {
                true => self.first(start, &mut random),
                false => self.children(&mut random),
            };
            let whole = self.take(&children, &mut score)?;
            if !whole {
                return Ok(());
            }
            self.record();
            if !told(self)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes the first generation: the given candidates that fit, then their children.
    fn first(&self, start: &[Genes], random: &mut ChaCha8Rng) -> Vec<Genes> {
        let fits = |genes: &&Genes| {
            genes.len() == self.ways.len()
                && self
                    .options
                    .limit
                    .is_none_or(|most| self.bytes(genes) <= most)
        };
        let mut all: Vec<Genes> = start.iter().filter(fits).cloned().collect();
        if all.is_empty() {
            all.push(self.repaired(vec![0; self.ways.len()], random));
        }
        all.dedup();
        let given = all.len();
        while all.len() < self.options.population.max(given) {
            let parent = all[below(random, given)].clone();
            all.push(self.mutated(parent, random));
        }
        all
    }

    fn children(&self, random: &mut ChaCha8Rng) -> Vec<Genes> {
        let count = self.options.population;
        let parent =
            |random: &mut ChaCha8Rng| &self.parents[below(random, self.parents.len())].genes;
        let child = |i: usize| match i < count / 2 {
            true => {
                let (a, b) = (parent(random), parent(random));
                let genes = a.iter().zip(b).map(|(&a, &b)| match random.next_u32() & 1 {
                    0 => a,
                    _ => b,
                });
                let genes = genes.collect();
                self.repaired(genes, random)
            }
            false => {
                let parent = parent(random).clone();
                self.mutated(parent, random)
            }
        };
        (0..count).map(child).collect()
    }

    /// Redraws some genes: each with a small chance, or one or two of them.
    fn mutated(&self, mut genes: Genes, random: &mut ChaCha8Rng) -> Genes {
        let open: Vec<usize> = (0..genes.len())
            .filter(|&i| self.ways[i].len() > 1)
            .collect();
        if open.is_empty() {
            return genes;
        }
        let mut chosen: Vec<usize> = match random.next_u32() & 1 {
            0 => open
                .iter()
                .copied()
                .filter(|_| chance(random, MUTATION))
                .collect(),
            _ => Vec::new(),
        };
        if chosen.is_empty() {
            let count = 1 + below(random, 2);
            chosen.extend((0..count).map(|_| open[below(random, open.len())]));
        }
        for i in chosen {
            // A different way than the current one.
            let other = below(random, self.ways[i].len() - 1) as u16;
            genes[i] = if other < genes[i] { other } else { other + 1 };
        }
        self.repaired(genes, random)
    }

    /// Reduces bytes for random tensors until the candidate fits, then increases others as long as
    /// it does.
    fn repaired(&self, mut genes: Genes, random: &mut ChaCha8Rng) -> Genes {
        let Some(limit) = self.options.limit else {
            return genes;
        };
        let mut bytes = self.bytes(&genes);
        let mut smaller: Vec<usize> = (0..genes.len()).filter(|&i| genes[i] > 0).collect();
        while bytes > limit && !smaller.is_empty() {
            let at = below(random, smaller.len());
            let i = smaller[at];
            let now = usize::from(genes[i]);
            bytes = bytes - self.ways[i][now] + self.ways[i][now - 1];
            genes[i] -= 1;
            if genes[i] == 0 {
                smaller.swap_remove(at);
            }
        }
        let mut larger: Vec<usize> = (0..genes.len()).collect();
        while !larger.is_empty() {
            let i = larger.swap_remove(below(random, larger.len()));
            let now = usize::from(genes[i]);
            if let Some(next) = self.ways[i].get(now + 1)
                && bytes <= limit
                && next - self.ways[i][now] <= limit - bytes
            {
                bytes += next - self.ways[i][now];
                genes[i] += 1;
                larger.push(i);
            }
        }
        genes
    }

    /// Evaluates children, and makes the best of them and their parents the next parents. False if
    /// the search is to end.
    fn take(
        &mut self,
        children: &[Genes],
        score: &mut impl FnMut(&[Genes]) -> Result<Scored>,
    ) -> Result<bool> {
        let mut unknown: Vec<Genes> = Vec::new();
        for genes in children {
            if !self.known.contains_key(genes) && !unknown.contains(genes) {
                unknown.push(genes.clone());
            }
        }
        let scores = score(&unknown)?;
        let whole = scores.len() == unknown.len() && scores.iter().all(Option::is_some);
        for (genes, fitness) in unknown.into_iter().zip(scores) {
            let Some(fitness) = fitness else {
                continue;
            };
            self.parents.push(Individual {
                genes: genes.clone(),
                fitness,
            });
            self.known.insert(genes, fitness);
        }
        // The sort is stable: of equally good candidates the older ones stay.
        self.parents.sort_by(|a, b| b.fitness.total_cmp(&a.fitness));
        self.parents.truncate((self.options.population / 5).max(1));
        Ok(whole)
    }

    fn record(&mut self) {
        let best = &self.parents[0];
        let sum: f64 = self.parents.iter().map(|parent| parent.fitness).sum();
        self.history.push(Generation {
            generation: self.history.len(),
            best: best.fitness,
            // Very low numbers would sum to infinity, which JSON cannot represent.
            mean: (sum / self.parents.len() as f64).clamp(f64::MIN, f64::MAX),
            bytes: self.bytes(&best.genes),
            evaluations: self.known.len(),
        });
    }
}

fn below(random: &mut ChaCha8Rng, count: usize) -> usize {
    ((u128::from(random.next_u64()) * count as u128) >> 64) as usize
}

fn chance(random: &mut ChaCha8Rng, share: f64) -> bool {
    ((random.next_u64() >> 11) as f64) < share * (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Cost, spend};

    /// Makes tensors of different sizes with four ways each, whose errors are those of 2, 3, 4 and
    /// 8 bits times their sensitivity.
    fn tensors(seed: u64) -> Vec<Vec<Cost>> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let tensor = |_| {
            let weights = 1000 * (1 + below(&mut random, 20)) as u64;
            let sensitive = (1 + below(&mut random, 100)) as f64;
            let way = |(bits, error): (u64, f64)| Cost {
                bytes: weights * bits / 8,
                error: error * sensitive,
            };
            [(2, 0.116), (3, 0.034), (4, 0.0095), (8, 0.0001)]
                .map(way)
                .to_vec()
        };
        (0..30).map(tensor).collect()
    }

    fn bytes_of(items: &[Vec<Cost>]) -> Vec<Vec<u64>> {
        let bytes = |ways: &Vec<Cost>| ways.iter().map(|way| way.bytes).collect();
        items.iter().map(bytes).collect()
    }

    fn error(items: &[Vec<Cost>], genes: &[u16]) -> f64 {
        let errors = items
            .iter()
            .zip(genes)
            .map(|(ways, &at)| ways[usize::from(at)].error);
        errors.sum()
    }

    fn search(
        items: &[Vec<Cost>],
        options: Evolve,
        start: &[Genes],
        fitness: impl Fn(&[u16]) -> f64,
    ) -> Population {
        let mut found = Population::new(bytes_of(items), options, String::new());
        let score = |some: &[Genes]| Ok(some.iter().map(|genes| Some(fitness(genes))).collect());
        found
            .run(options.generations, start, score, |_| Ok(true))
            .unwrap();
        found
    }

    fn options(items: &[Vec<Cost>], generations: usize) -> Evolve {
        let least: u64 = bytes_of(items).iter().map(|ways| ways[0]).sum();
        Evolve {
            generations,
            seed: 3,
            limit: Some(least * 3 / 2),
            ..Evolve::default()
        }
    }

    #[test]
    fn comes_near_the_optimum_of_what_adds_up() {
        for seed in 0..3 {
            let items = tensors(seed);
            let options = options(&items, 150);
            // Starting from the uniform plan, not from the solver's answer.
            let found = search(&items, options, &[vec![0; items.len()]], |genes| {
                -error(&items, genes)
            });
            let best = spend(&items, options.limit.unwrap()).unwrap();
            let best: Genes = best.into_iter().map(|at| at as u16).collect();
            let (found, best) = (-found.best().unwrap().fitness, error(&items, &best));
            assert!(found <= best * 1.02, "seed {seed}: {found}, {best}");
        }
    }

    #[test]
    fn beats_what_adds_up_where_layers_interact() {
        let items = tensors(1);
        let options = options(&items, 40);
        let solved = spend(&items, options.limit.unwrap()).unwrap();
        let solved: Genes = solved.into_iter().map(|at| at as u16).collect();
        // Errors of consecutive layers multiply.
        let fitness = |genes: &[u16]| {
            let at = |i: usize| items[i][usize::from(genes[i])].error;
            -(1..items.len()).map(|i| at(i - 1) * at(i)).sum::<f64>()
        };
        let found = search(&items, options, std::slice::from_ref(&solved), fitness);
        let best = found.best().unwrap();
        assert!(
            best.fitness > 0.9 * fitness(&solved),
            "{} {}",
            best.fitness,
            fitness(&solved)
        );
        assert!(found.bytes(&best.genes) <= options.limit.unwrap());
        let history = found.history();
        assert_eq!(history.len(), 41);
        assert!(history.windows(2).all(|pair| pair[1].best >= pair[0].best));
    }

    #[test]
    fn goes_on_as_if_it_had_never_stopped() {
        let items = tensors(2);
        let options = options(&items, 12);
        let fitness = |genes: &[u16]| -error(&items, genes);
        let whole = search(&items, options, &[], fitness);
        let first = search(
            &items,
            Evolve {
                generations: 5,
                ..options
            },
            &[],
            fitness,
        );
        let text = serde_json::to_string(&first).unwrap();
        let mut second: Population = serde_json::from_str(&text).unwrap();
        let empty = |options, identity: &str| {
            Population::new(bytes_of(&items), options, identity.to_owned())
        };
        assert!(second.is_of(&empty(options, "")));
        let score = |some: &[Genes]| Ok(some.iter().map(|genes| Some(fitness(genes))).collect());
        second.run(12, &[], score, |_| Ok(true)).unwrap();
        assert_eq!(second, whole);
        assert!(!second.is_of(&empty(Evolve { seed: 4, ..options }, "")));
        assert!(!second.is_of(&empty(options, "another model")));
        // A state that was never written is not accepted as a search.
        second.parents.clear();
        second.history.clear();
        assert!(!second.is_of(&empty(options, "")));
    }

    #[test]
    fn ends_with_the_best_so_far() {
        let items = tensors(2);
        let options = options(&items, 12);
        let mut population = Population::new(bytes_of(&items), options, String::new());
        let mut asked = 0;
        let score = |some: &[Genes]| {
            asked += some.len();
            let count = if asked > 120 { 3 } else { some.len() };
            Ok(some
                .iter()
                .take(count)
                .map(|genes| Some(-error(&items, genes)))
                .collect())
        };
        population.run(12, &[], score, |_| Ok(true)).unwrap();
        assert!(population.history().len() < 12);
        assert!(population.best().is_some());
    }
}
