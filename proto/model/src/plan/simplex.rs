//! A small linear program, solved exactly enough: place units of classes on sets of items, at the least cost, within the items' capacities.
//!
//! There are too many sets to write them all down, so columns are generated: the solver says what an item's capacity and a unit of a class
//! are worth, and whoever knows which sets there are answers with those that would pay. The method is the revised simplex with the inverse
//! in product form (G. B. Dantzig and W. Orchard-Hays 1954), of which a planner's sparse matrices of zeros and ones need no more: the
//! inverse is never written down, and a pivot costs as much as the columns have entries. The product is made anew now and then, in an order
//! that fills in little (H. M. Markowitz 1957: rows first in which only one column is left).
//!
//! Capacities are disturbed by less than 1e-6 so that ties, and with them cycles, do not happen; amounts are right to [`TOLERANCE`].

/// Amounts are right to this.
pub const TOLERANCE: f64 = 1e-4;
/// A unit that is left over costs this: more than any detour of copies.
const UNPLACED: f64 = 1e3;
/// Less than this is nothing to a pivot or a price.
pub const EPSILON: f64 = 1e-7;
/// Variables to look at before all are looked at again.
const LIKELY_MAX: usize = 64;
/// Pivots, and one for so many rows, before the inverse is made anew.
const REINVERT_AFTER: (usize, usize) = (64, 8);
/// Less than this is no pivot when the inverse is made anew.
const PIVOT_MIN: f64 = 1e-5;
/// Pivots before the present solution has to do: it is feasible, and what is not placed then counts as impossible.
const PIVOTS_MAX: usize = 40_000;

/// One way to place a unit of a class.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Whose unit.
    pub class: usize,
    /// On which items, without repetition.
    pub items: Vec<u16>,
    /// What it costs, not negative.
    pub cost: f64,
}

/// What capacity and units are worth at the moment, to whoever offers columns: one pays if its cost and its items' prices are together
/// less than what its class is worth.
#[derive(Debug)]
pub struct Worth<'a> {
    /// For each item what a unit of its capacity costs.
    pub prices: &'a [f64],
    /// For each class what placing a unit is worth; 0 for classes of which nothing is left.
    pub classes: &'a [f64],
}

/// An optimum over all columns that were offered.
#[derive(Debug)]
pub struct Solution {
    /// Columns of the pool, by index, in amounts greater than [`TOLERANCE`]; in order of the index.
    pub amounts: Vec<(usize, f64)>,
    /// Units that fit nowhere.
    pub unplaced: f64,
    /// For each item what its capacity is worth: more than nothing only if all of it is used.
    pub prices: Vec<f64>,
    /// Work done: numbers looked at, a few for each nanosecond.
    pub work: u64,
}

/// A column of the inverse's product form.
struct Eta {
    row: usize,
    pivot: f64,
    others: Vec<(u32, f64)>,
}

struct Simplex<'a> {
    items: usize,
    rows: usize,
    pool: &'a mut Vec<Column>,
    /// Of the pool: whether it may be used at all.
    usable: Vec<bool>,
    capacities: &'a [f64],
    sizes: &'a [f64],
    /// Which variable each row's is: one below `rows` is the row's own slack or left-over, others are columns.
    basis: Vec<usize>,
    basic: Vec<bool>,
    values: Vec<f64>,
    /// What the rows add up to.
    right: Vec<f64>,
    etas: Vec<Eta>,
    /// The pivot at which the inverse is made anew.
    reinvert_at: usize,
    /// Variables that lowered the cost when all were last looked at, the best first.
    likely: Vec<usize>,
    work: u64,
}

/// Solves it. `pool` holds columns that are known, and gets those that `offer` adds.
pub fn solve(capacities: &[f64], sizes: &[f64], pool: &mut Vec<Column>, offer: &mut dyn FnMut(&Worth<'_>) -> Vec<Column>) -> Solution {
    let (items, rows) = (capacities.len(), capacities.len() + sizes.len());
    let disturbed = capacities.iter().enumerate().map(|(item, capacity)| capacity + 1e-7 * (1.0 + (item * 7919 % 101) as f64 / 101.0));
    let right: Vec<f64> = disturbed.chain(sizes.iter().copied()).collect();
    let mut simplex = Simplex {
        items,
        rows,
        pool,
        usable: Vec::new(),
        capacities,
        sizes,
        basis: (0..rows).collect(),
        basic: vec![true; rows],
        values: right.clone(),
        right,
        etas: Vec::new(),
        reinvert_at: REINVERT_AFTER.0 + rows / REINVERT_AFTER.1,
        likely: Vec::new(),
        work: 0,
    };
    simplex.admit();
    simplex.run(offer)
}

impl Simplex<'_> {
    fn run(mut self, offer: &mut dyn FnMut(&Worth<'_>) -> Vec<Column>) -> Solution {
        let mut pivots = 0;
        loop {
            let worth = self.worth();
            let Some(entering) = self.best(&worth) else {
                let (prices, classes) = (self.prices(&worth), self.classes(&worth));
                let mut offered = offer(&Worth { prices: &prices, classes: &classes });
                offered.retain(|column| self.reduced(column, &worth) < -EPSILON);
                if offered.is_empty() {
                    return self.solution(prices);
                }
                self.pool.extend(offered);
                self.admit();
                continue;
            };
            if pivots >= PIVOTS_MAX || !self.pivot(entering) {
                let prices = self.prices(&worth);
                return self.solution(prices);
            }
            pivots += 1;
            if self.etas.len() >= self.reinvert_at {
                self.reinvert();
            }
        }
    }

    /// Takes note of new columns of the pool.
    fn admit(&mut self) {
        for column in self.pool.iter().skip(self.usable.len()) {
            let fits = |item: &u16| self.capacities.get(usize::from(*item)).is_some_and(|capacity| *capacity > 0.0);
            self.usable.push(self.sizes.get(column.class).is_some_and(|size| *size > 0.0) && column.items.iter().all(fits));
        }
        self.basic.resize(self.rows + self.pool.len(), false);
    }

    fn cost(&self, variable: usize) -> f64 {
        match variable.checked_sub(self.rows) {
            Some(column) => self.pool[column].cost,
            None if variable < self.items => 0.0,
            None => UNPLACED,
        }
    }

    /// The dual values: costs of the basis times its inverse.
    fn worth(&mut self) -> Vec<f64> {
        let mut worth: Vec<f64> = self.basis.iter().map(|variable| self.cost(*variable)).collect();
        self.work += worth.len() as u64;
        for eta in self.etas.iter().rev() {
            self.work += 1 + eta.others.len() as u64;
            let others: f64 = eta.others.iter().map(|(row, value)| worth[*row as usize] * value).sum();
            worth[eta.row] = (worth[eta.row] - others) / eta.pivot;
        }
        worth
    }

    fn prices(&self, worth: &[f64]) -> Vec<f64> {
        // The sum makes of a negative zero a positive one: the order of prices must not depend on how `max` was compiled.
        worth[..self.items].iter().map(|value| (-value).max(0.0) + 0.0).collect()
    }

    fn classes(&self, worth: &[f64]) -> Vec<f64> {
        worth[self.items..].iter().zip(self.sizes).map(|(value, size)| if *size > 0.0 { *value } else { 0.0 }).collect()
    }

    fn reduced(&self, column: &Column, worth: &[f64]) -> f64 {
        column.cost - worth[self.items + column.class] - column.items.iter().map(|item| worth[usize::from(*item)]).sum::<f64>()
    }

    /// A variable that lowers the cost: the best of those that were likely when all were last looked at, and when none of them does any
    /// more, all are looked at again.
    fn best(&mut self, worth: &[f64]) -> Option<usize> {
        let mut likely = std::mem::take(&mut self.likely);
        self.work += likely.len() as u64 * 4;
        let best = likely.iter().copied().filter(|variable| !self.basic[*variable]).map(|variable| (variable, self.gain(variable, worth)));
        let mut best = best.fold((None, -EPSILON), |best, (variable, gain)| if gain < best.1 { (Some(variable), gain) } else { best }).0;
        if best.is_none() {
            likely = self.all_that_gain(worth);
            best = likely.first().copied();
        }
        self.likely = likely;
        best
    }

    fn all_that_gain(&mut self, worth: &[f64]) -> Vec<usize> {
        self.work += self.rows as u64 + self.pool.len() as u64 * 4;
        let columns = (self.rows..self.rows + self.pool.len()).filter(|variable| self.usable[variable - self.rows]);
        let nonbasic = (0..self.items).chain(columns).filter(|variable| !self.basic[*variable]);
        let mut found: Vec<(f64, usize)> =
            nonbasic.map(|variable| (self.gain(variable, worth), variable)).filter(|(gain, _)| *gain < -EPSILON).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        found.into_iter().take(LIKELY_MAX).map(|(_, variable)| variable).collect()
    }

    /// By how much a unit of a variable changes the cost: less than nothing is a gain. Left-overs never come back.
    fn gain(&self, variable: usize, worth: &[f64]) -> f64 {
        variable.checked_sub(self.rows).map_or_else(|| -worth[variable], |column| self.reduced(&self.pool[column], worth))
    }

    /// The rows in which a column of the pool has a one.
    fn ones(&self, index: usize) -> impl Iterator<Item = usize> + use<'_> {
        let column = &self.pool[index];
        column.items.iter().map(|item| usize::from(*item)).chain(std::iter::once(self.items + column.class))
    }

    /// The variable's column in terms of the basis.
    fn column(&mut self, variable: usize) -> Vec<f64> {
        let mut values = vec![0.0; self.rows];
        match variable.checked_sub(self.rows) {
            None => values[variable] = 1.0,
            Some(index) => self.ones(index).for_each(|row| values[row] = 1.0),
        }
        self.in_terms_of_basis(&mut values);
        values
    }

    fn in_terms_of_basis(&mut self, values: &mut [f64]) {
        self.work += (self.rows + self.etas.len()) as u64;
        for eta in &self.etas {
            if values[eta.row] != 0.0 {
                let scaled = values[eta.row] / eta.pivot;
                values[eta.row] = scaled;
                self.work += eta.others.len() as u64;
                for (row, value) in &eta.others {
                    values[*row as usize] -= value * scaled;
                }
            }
        }
    }

    fn eta(row: usize, column: &[f64]) -> Eta {
        let others = column.iter().enumerate().filter(|(other, value)| *other != row && value.abs() > 1e-12);
        Eta { row, pivot: column[row], others: others.map(|(other, value)| (other as u32, *value)).collect() }
    }

    /// Makes the inverse anew, and the values with it. Rows whose own variable is in the basis need nothing; the others get a column each.
    fn reinvert(&mut self) {
        let before = std::mem::take(&mut self.etas);
        let mut basis: Vec<Option<usize>> = (0..self.rows).map(|row| self.basic[row].then_some(row)).collect();
        let mut columns: Vec<usize> = self.basis.iter().filter_map(|variable| variable.checked_sub(self.rows)).collect();
        columns.sort_unstable();
        for (row, index) in self.triangle(&columns, &mut basis) {
            let others = self.ones(index).filter(|other| *other != row).map(|other| (other as u32, 1.0)).collect();
            self.etas.push(Eta { row, pivot: 1.0, others });
        }
        let placed: Vec<usize> = basis.iter().flatten().filter_map(|variable| variable.checked_sub(self.rows)).collect();
        for index in columns.into_iter().filter(|index| !placed.contains(index)) {
            let column = self.column(self.rows + index);
            let open = (0..self.rows).filter(|row| basis[*row].is_none() && column[*row].abs() > PIVOT_MIN);
            let Some(row) = open.max_by(|a, b| column[*a].abs().total_cmp(&column[*b].abs())) else {
                // Numerically the columns are not independent: the old inverse must do for a while.
                self.etas = before;
                self.reinvert_at = self.etas.len() + REINVERT_AFTER.0 + self.rows / REINVERT_AFTER.1;
                return;
            };
            basis[row] = Some(self.rows + index);
            self.etas.push(Self::eta(row, &column));
        }
        self.basis = basis.into_iter().enumerate().map(|(row, variable)| variable.unwrap_or(row)).collect();
        let mut values = self.right.clone();
        self.in_terms_of_basis(&mut values);
        self.values = values.into_iter().map(|value| value.max(0.0)).collect();
        self.reinvert_at = self.etas.len() + REINVERT_AFTER.0 + self.rows / REINVERT_AFTER.1;
    }

    /// Columns that can be pivots as they are, each with its row: the only one left with a one there. Enters them into `basis`.
    fn triangle(&self, columns: &[usize], basis: &mut [Option<usize>]) -> Vec<(usize, usize)> {
        let mut at: Vec<Vec<usize>> = vec![Vec::new(); self.rows];
        for index in columns {
            self.ones(*index).for_each(|row| at[row].push(*index));
        }
        let mut left: Vec<usize> = at.iter().map(Vec::len).collect();
        let mut placed = vec![false; self.pool.len()];
        let mut ready: Vec<usize> = (0..self.rows).filter(|row| basis[*row].is_none() && left[*row] == 1).collect();
        let mut found = Vec::new();
        while let Some(row) = ready.pop() {
            let Some(index) = at[row].iter().copied().find(|index| !placed[*index]) else { continue };
            if basis[row].is_some() {
                continue;
            }
            basis[row] = Some(self.rows + index);
            placed[index] = true;
            found.push((row, index));
            for other in self.ones(index) {
                left[other] -= 1;
                if left[other] == 1 && basis[other].is_none() {
                    ready.push(other);
                }
            }
        }
        found
    }

    /// Brings a variable into the basis; false if nothing limits it, which cannot be.
    fn pivot(&mut self, entering: usize) -> bool {
        let column = self.column(entering);
        let mut leaving: Option<(usize, f64)> = None;
        for (row, value) in column.iter().enumerate().filter(|(_, value)| **value > EPSILON) {
            let ratio = self.values[row] / *value;
            let better = |(best, at): (usize, f64)| ratio < at - 1e-9 || (ratio < at + 1e-9 && *value > column[best]);
            if leaving.is_none_or(better) {
                leaving = Some((row, ratio));
            }
        }
        let Some((row, amount)) = leaving else { return false };
        let amount = amount.max(0.0);
        for (value, by) in self.values.iter_mut().zip(&column) {
            *value = (*value - by * amount).max(0.0);
        }
        self.values[row] = amount;
        self.basic[self.basis[row]] = false;
        self.basic[entering] = true;
        self.basis[row] = entering;
        self.etas.push(Self::eta(row, &column));
        true
    }

    fn solution(self, prices: Vec<f64>) -> Solution {
        let (rows, work) = (self.rows, self.work);
        let basics = self.basis.iter().copied().zip(self.values.iter().copied());
        let unplaced = basics.clone().filter(|(variable, _)| (self.items..rows).contains(variable)).map(|(_, value)| value).sum();
        let mut amounts: Vec<(usize, f64)> = basics
            .filter(|(_, value)| *value > TOLERANCE)
            .filter_map(|(variable, value)| Some((variable.checked_sub(rows)?, value)))
            .collect();
        amounts.sort_unstable_by_key(|(column, _)| *column);
        Solution { amounts, unplaced, prices, work }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(class: usize, items: &[u16], cost: f64) -> Column {
        Column { class, items: items.to_vec(), cost }
    }

    #[test]
    fn a_triangle_holds_half_of_what_its_corners_hold() {
        let mut pool = vec![column(0, &[0, 1], 0.0), column(0, &[1, 2], 0.0), column(0, &[0, 2], 0.0)];
        let solution = solve(&[1.0, 1.0, 1.0], &[9.0], &mut pool, &mut |_| Vec::new());
        assert!((solution.unplaced - 7.5).abs() < TOLERANCE, "{solution:?}");
        assert!(solution.amounts.iter().all(|(_, amount)| (amount - 0.5).abs() < TOLERANCE), "{solution:?}");
        assert!(solution.prices.iter().all(|price| *price > 0.0), "{solution:?}");
    }

    #[test]
    fn the_cheapest_way_is_taken_as_far_as_it_goes() {
        let offered = vec![column(0, &[1], 1.0), column(1, &[2], 5.0)];
        let mut pool = vec![column(0, &[0], 0.0), column(1, &[1], 0.0)];
        let solution = solve(&[3.0, 4.0, 9.0], &[5.0, 4.0], &mut pool, &mut |_| offered.clone());
        // Two of the first class must go to item 1, and so two of the second class to item 2.
        let cost: f64 = solution.amounts.iter().map(|(index, amount)| pool[*index].cost * amount).sum();
        assert!((cost - 12.0).abs() < 0.01, "{solution:?}");
        assert!(solution.unplaced < TOLERANCE);
    }
}
