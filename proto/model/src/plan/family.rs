//! The sets of sites that a policy lets a partition be at, without writing them all down: there are millions of them in large layouts.
use crate::{
    layout::SiteIndex,
    placement::{Geography, most_at, provider_of},
    policy::Policy,
};

/// More groups than this are not looked at for one question. It bounds the work on layouts that are made to be hard; real ones need a few
/// hundred.
const LOOKED_AT_MAX: u32 = 2_000_000;

/// All sets of `size` of the candidate sites that keep to a policy: [`crate::placement::violations`] finds at most that copies are missing.
#[derive(Debug, Clone)]
pub struct Family {
    /// The sites that may hold a copy; sets name them by their place in this.
    pub sites: Vec<SiteIndex>,
    /// The size of every set.
    pub size: usize,
    far_copies: usize,
    far: Vec<Vec<bool>>,
    /// For each site its provider, numbered.
    provider: Vec<usize>,
    /// For each provider the most copies.
    most: Vec<usize>,
    /// The site that every set must have.
    home: Option<usize>,
}

impl Family {
    /// The largest sets that there are among these sites, with the home in every one if it is in any; `None` if no set is far.
    pub fn new(policy: &Policy, geography: &Geography<'_>, sites: Vec<SiteIndex>) -> Option<Self> {
        let layout = geography.layout;
        let far = sites.iter().map(|a| sites.iter().map(|b| geography.far(policy, *a, *b)).collect()).collect();
        let mut names: Vec<&str> = Vec::new();
        let mut most = Vec::new();
        let mut provider = Vec::new();
        for site in &sites {
            let name = provider_of(layout, *site);
            let known = names.iter().position(|known| *known == name);
            provider.push(known.unwrap_or(names.len()));
            if known.is_none() {
                names.push(name);
                most.push(most_at(policy, name));
            }
        }
        let home = policy.home.as_deref().and_then(|home| layout.site_named(home)).and_then(|home| sites.iter().position(|s| *s == home));
        let far_copies = usize::from(policy.far_copies);
        let mut family = Self { sites, size: 0, far_copies, far, provider, most, home };
        let none = vec![0.0; family.sites.len()];
        for size in (far_copies..=usize::from(policy.copies)).rev() {
            family.size = size;
            family.home = home;
            if family.cheapest(&none, f64::INFINITY).is_some() {
                return Some(family);
            }
            family.home = None;
            if family.cheapest(&none, f64::INFINITY).is_some() {
                return Some(family);
            }
        }
        None
    }

    /// The site that every set has.
    pub const fn home(&self) -> Option<usize> {
        self.home
    }

    /// The set with the least sum of prices, if that is below `below`. Sites whose price is infinite are in none.
    ///
    /// Every set holds a far group; and once that is chosen, the best completion is the cheapest sites that providers have room for.
    pub fn cheapest(&self, prices: &[f64], below: f64) -> Option<(f64, Vec<usize>)> {
        let mut order: Vec<usize> = (0..self.sites.len()).filter(|site| prices[*site].is_finite()).collect();
        order.sort_by(|a, b| prices[*a].total_cmp(&prices[*b]).then(a.cmp(b)));
        if order.len() < self.size || self.home.is_some_and(|home| !prices[home].is_finite()) {
            return None;
        }
        let filled: f64 = order.iter().take(self.size - self.far_copies).map(|site| prices[*site]).sum();
        let mut search = Search { family: self, prices, order: &order, filled, best: (below, Vec::new()), looked_at: 0 };
        search.grow(&mut Vec::new(), 0.0, 0);
        let (sum, mut sites) = search.best;
        sites.sort_unstable();
        (!sites.is_empty()).then_some((sum, sites))
    }

    /// Every set, in lexicographic order, if there are at most `most`.
    pub fn all(&self, most: usize) -> Option<Vec<Vec<usize>>> {
        let count = self.sites.len();
        let mut found = Vec::new();
        let mut chosen: Vec<usize> = (0..self.size).collect();
        let mut looked_at = 0;
        loop {
            if count < self.size || looked_at > most * 8 || found.len() > most {
                return (found.len() <= most && looked_at <= most * 8).then_some(found);
            }
            looked_at += 1;
            if self.admits(&chosen) {
                found.push(chosen.clone());
            }
            // The next in order: the last that can still go up does, and those behind it follow.
            let Some(at) = (0..self.size).rev().find(|at| chosen[*at] + self.size - at < count) else { return Some(found) };
            chosen[at] += 1;
            for behind in at + 1..self.size {
                chosen[behind] = chosen[behind - 1] + 1;
            }
        }
    }

    /// Whether a set of distinct sites, in ascending order, is one of them.
    pub fn admits(&self, set: &[usize]) -> bool {
        let right_size = set.len() == self.size && set.iter().all(|site| *site < self.sites.len());
        let mut prices = vec![f64::INFINITY; self.sites.len()];
        for site in set.iter().filter(|site| **site < self.sites.len()) {
            prices[*site] = 0.0;
        }
        right_size && self.cheapest(&prices, f64::INFINITY).is_some_and(|(_, found)| found == set)
    }

    /// The cheapest set that holds a far group: greedy, which is best since providers' limits are a matroid.
    fn fill(&self, group: &[usize], prices: &[f64], order: &[usize]) -> Option<(f64, Vec<usize>)> {
        let mut room = self.most.clone();
        let mut set: Vec<usize> = Vec::with_capacity(self.size);
        for site in group.iter().copied().chain(self.home.filter(|home| !group.contains(home))) {
            let left = room.get_mut(self.provider[site])?;
            *left = left.checked_sub(1)?;
            set.push(site);
        }
        for site in order {
            let left = room.get_mut(self.provider[*site])?;
            if set.len() < self.size && *left > 0 && !set.contains(site) {
                *left -= 1;
                set.push(*site);
            }
        }
        (set.len() == self.size).then(|| (set.iter().map(|site| prices[*site]).sum(), set))
    }
}

/// Branch and bound over far groups, cheap sites first.
struct Search<'a> {
    family: &'a Family,
    prices: &'a [f64],
    order: &'a [usize],
    /// The least that the copies beyond the far ones cost.
    filled: f64,
    best: (f64, Vec<usize>),
    looked_at: u32,
}

impl Search<'_> {
    fn grow(&mut self, group: &mut Vec<usize>, sum: f64, from: usize) {
        self.looked_at += 1;
        let missing = self.family.far_copies - group.len();
        if missing == 0 {
            if let Some((sum, set)) = self.family.fill(group, self.prices, self.order)
                && sum < self.best.0
            {
                self.best = (sum, set);
            }
            return;
        }
        for (index, site) in self.order.iter().enumerate().skip(from) {
            let price = self.prices[*site];
            let bound = sum + price * missing as f64 + self.filled;
            if bound >= self.best.0 || self.looked_at > LOOKED_AT_MAX {
                return;
            }
            if group.iter().all(|member| self.family.far[*member][*site]) {
                group.push(*site);
                self.grow(group, sum + price, index + 1);
                group.pop();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layout::{Layout, Site, examples};

    #[test]
    fn rule_22_the_cheapest_set_is_the_cheapest_of_all() {
        let places = [(48.6, 7.8), (50.7, 3.2), (52.2, 21.0), (60.2, 24.9), (41.4, 2.2), (45.5, 9.2), (53.3, -6.3)];
        let sites: Vec<Site> = places
            .iter()
            .enumerate()
            .map(|(n, (lat, lon))| Site {
                provider: ["", "x", "y"][n % 3].into(),
                ..examples::site(&format!("s{n}"), "FR", *lat, *lon).unwrap()
            })
            .collect();
        let nodes = sites.iter().map(|s| examples::node(&s.name, &s.name)).collect();
        let layout = Layout::new(1, 8, sites, nodes).unwrap();
        let geography = Geography::claimed(&layout);
        for (copies, far_copies, most, home) in
            [(2, 2, 0, None), (3, 2, 1, None), (3, 3, 1, Some("s4")), (4, 2, 2, Some("s1")), (3, 1, 1, None)]
        {
            let policy = Policy { copies, far_copies, max_copies_per_provider: most, home: home.map(String::from), ..Policy::default() };
            let family = Family::new(&policy, &geography, layout.site_indexes().collect()).unwrap();
            let all = family.all(1000).unwrap();
            assert!(!all.is_empty());
            for turn in 0..40_usize {
                let prices: Vec<f64> = (0..7).map(|site| ((turn * 31 + site * 17) % 13) as f64).collect();
                let sum = |set: &Vec<usize>| set.iter().map(|site| prices[*site]).sum::<f64>();
                let least = all.iter().map(sum).fold(f64::INFINITY, f64::min);
                let (found, set) = family.cheapest(&prices, f64::INFINITY).unwrap();
                assert!(found == least && all.contains(&set), "{policy:?} {prices:?}: {set:?} costs {found}, not {least}");
                assert_eq!(family.cheapest(&prices, least), None);
            }
        }
    }
}
