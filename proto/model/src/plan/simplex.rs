//! A small linear program, solved exactly enough: place units of classes on sets of items, at the least cost, within the items' capacities.
//!
//! There are too many sets to write them all down, so columns are generated: the solver says what an item's capacity and a unit of a class
//! are worth, and whoever knows which sets there are answers with those that would pay. The method is the revised simplex with the inverse
//! in product form (G. B. Dantzig and W. Orchard-Hays 1954), of which a planner's sparse matrices of zeros and ones need no more: the
//! inverse is never written down, and a pivot costs as much as the columns have entries.
//!
//! Capacities are disturbed by less than 1e-6 so that ties, and with them cycles, do not happen; amounts are right to [`TOLERANCE`].

/// Amounts are right to this.
pub const TOLERANCE: f64 = 1e-4;
/// A unit that is left over costs this: more than any detour of copies.
const UNPLACED: f64 = 1e3;
/// Less than this is nothing to a pivot or a price.
pub const EPSILON: f64 = 1e-7;
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
    /// Work done.
    pub pivots: usize,
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
    etas: Vec<Eta>,
}

/// Solves it. `pool` holds columns that are known, and gets those that `offer` adds.
pub fn solve(capacities: &[f64], sizes: &[f64], pool: &mut Vec<Column>, offer: &mut dyn FnMut(&Worth<'_>) -> Vec<Column>) -> Solution {
    let (items, rows) = (capacities.len(), capacities.len() + sizes.len());
    let disturbed = capacities.iter().enumerate().map(|(item, capacity)| capacity + 1e-7 * (1.0 + (item * 7919 % 101) as f64 / 101.0));
    let values = disturbed.chain(sizes.iter().copied()).collect();
    let mut simplex = Simplex {
        items,
        rows,
        pool,
        usable: Vec::new(),
        capacities,
        sizes,
        basis: (0..rows).collect(),
        basic: vec![true; rows],
        values,
        etas: Vec::new(),
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
                    return self.solution(prices, pivots);
                }
                self.pool.extend(offered);
                self.admit();
                continue;
            };
            if pivots >= PIVOTS_MAX || !self.pivot(entering) {
                let prices = self.prices(&worth);
                return self.solution(prices, pivots);
            }
            pivots += 1;
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
    fn worth(&self) -> Vec<f64> {
        let mut worth: Vec<f64> = self.basis.iter().map(|variable| self.cost(*variable)).collect();
        for eta in self.etas.iter().rev() {
            let others: f64 = eta.others.iter().map(|(row, value)| worth[*row as usize] * value).sum();
            worth[eta.row] = (worth[eta.row] - others) / eta.pivot;
        }
        worth
    }

    fn prices(&self, worth: &[f64]) -> Vec<f64> {
        worth[..self.items].iter().map(|value| (-value).max(0.0)).collect()
    }

    fn classes(&self, worth: &[f64]) -> Vec<f64> {
        worth[self.items..].iter().zip(self.sizes).map(|(value, size)| if *size > 0.0 { *value } else { 0.0 }).collect()
    }

    fn reduced(&self, column: &Column, worth: &[f64]) -> f64 {
        column.cost - worth[self.items + column.class] - column.items.iter().map(|item| worth[usize::from(*item)]).sum::<f64>()
    }

    /// The variable that lowers the cost most per unit.
    fn best(&self, worth: &[f64]) -> Option<usize> {
        let slacks = (0..self.items).filter(|row| !self.basic[*row]).map(|row| (row, -worth[row]));
        let columns = self.pool.iter().enumerate().filter(|(index, _)| self.usable[*index] && !self.basic[self.rows + index]);
        let columns = columns.map(|(index, column)| (self.rows + index, self.reduced(column, worth)));
        let mut best = (None, -EPSILON);
        for (variable, reduced) in slacks.chain(columns) {
            if reduced < best.1 {
                best = (Some(variable), reduced);
            }
        }
        best.0
    }

    /// The variable's column in terms of the basis.
    fn column(&self, variable: usize) -> Vec<f64> {
        let mut values = vec![0.0; self.rows];
        match variable.checked_sub(self.rows) {
            None => values[variable] = 1.0,
            Some(index) => {
                let column = &self.pool[index];
                values[self.items + column.class] = 1.0;
                for item in &column.items {
                    values[usize::from(*item)] = 1.0;
                }
            }
        }
        for eta in &self.etas {
            if values[eta.row] != 0.0 {
                let scaled = values[eta.row] / eta.pivot;
                values[eta.row] = scaled;
                for (row, value) in &eta.others {
                    values[*row as usize] -= value * scaled;
                }
            }
        }
        values
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
        let others = column.iter().enumerate().filter(|(other, value)| *other != row && value.abs() > 1e-12);
        self.etas.push(Eta { row, pivot: column[row], others: others.map(|(other, value)| (other as u32, *value)).collect() });
        true
    }

    fn solution(self, prices: Vec<f64>, pivots: usize) -> Solution {
        let rows = self.rows;
        let basics = self.basis.iter().copied().zip(self.values.iter().copied());
        let unplaced = basics.clone().filter(|(variable, _)| (self.items..rows).contains(variable)).map(|(_, value)| value).sum();
        let mut amounts: Vec<(usize, f64)> = basics
            .filter(|(_, value)| *value > TOLERANCE)
            .filter_map(|(variable, value)| Some((variable.checked_sub(rows)?, value)))
            .collect();
        amounts.sort_unstable_by_key(|(column, _)| *column);
        Solution { amounts, unplaced, prices, pivots }
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
        let mut offered = vec![column(0, &[1], 1.0), column(1, &[2], 5.0)];
        let mut pool = vec![column(0, &[0], 0.0), column(1, &[1], 0.0)];
        let solution = solve(&[3.0, 4.0, 9.0], &[5.0, 4.0], &mut pool, &mut |_| std::mem::take(&mut offered));
        // Two of the first class must go to item 1, and so two of the second class to item 2.
        let cost: f64 = solution.amounts.iter().map(|(index, amount)| pool[*index].cost * amount).sum();
        assert!((cost - 12.0).abs() < 0.01, "{solution:?}");
        assert!(solution.unplaced < TOLERANCE);
    }
}
