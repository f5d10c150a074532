//! Countries, and the groups of them that a policy may name.
//!
//! Groups are constants of the program with a date, not looked up: what a policy means must not change by itself. A state that joins
//! or leaves changes this file, and with it what policies that name the group allow, from the release on.
//!
//! As of 2026-01-01. Sources: the list of members at european-union.europa.eu, "EU countries" (27 since the United Kingdom left on
//! 2020-02-01), and the contracting parties of the Agreement on the European Economic Area at efta.int, "EEA Agreement" (the EU and
//! Iceland, Liechtenstein and Norway; Switzerland is none). Codes are ISO 3166-1 alpha-2. Territories that have a code of their own
//! (such as GF, GP or GL) are not included: name them if they are meant.

/// A group of countries and its members.
type Group = (&'static str, &'static [&'static str]);

/// The European Union.
const EU: &[&str] = &[
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL",
    "PT", "RO", "SE", "SI", "SK",
];

/// The European Economic Area: the European Union and three more.
const EEA: &[&str] = &[
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IS", "IT", "LI", "LT", "LU", "LV", "MT",
    "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK",
];

/// Every group that a policy may name.
pub const GROUPS: [Group; 2] = [("EU", EU), ("EEA", EEA)];

/// The members of a group; `None` if nothing of that name is one.
pub fn expand(group: &str) -> Option<&'static [&'static str]> {
    GROUPS.iter().find(|(name, _)| *name == group).map(|(_, members)| *members)
}

/// Whether a list of countries and groups lets a country hold a copy. An empty list lets every one.
pub fn allows(list: &[String], country: &str) -> bool {
    let names = |entry: &String| entry == country || expand(entry).is_some_and(|members| members.contains(&country));
    list.is_empty() || list.iter().any(names)
}

/// Whether a policy's list may have this entry: a country's code or a group.
pub fn is_country_or_group(entry: &str) -> bool {
    expand(entry).is_some() || crate::layout::is_country(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn rule_22_groups_have_their_members_and_no_others() {
        assert_eq!((EU.len(), EEA.len()), (27, 30));
        assert!(EU.iter().all(|country| EEA.contains(country)));
        for (_, members) in GROUPS {
            assert!(members.is_sorted() && members.iter().all(|country| crate::layout::is_country(country)));
        }
        assert!(allows(&list(&["EU"]), "FR") && !allows(&list(&["EU"]), "NO") && !allows(&list(&["EU"]), "GB"));
        assert!(allows(&list(&["EEA"]), "NO") && !allows(&list(&["EEA"]), "CH"));
        assert!(allows(&list(&["EU", "CH"]), "CH") && allows(&list(&[]), "JP") && !allows(&list(&["FR"]), "DE"));
    }

    #[test]
    fn rule_22_a_group_is_no_country_of_a_site() {
        assert!(is_country_or_group("EU") && is_country_or_group("EEA") && is_country_or_group("FR"));
        assert!(!crate::layout::is_country("EU"), "a site is somewhere");
        assert!(!is_country_or_group("EUR") && !is_country_or_group("eu") && !is_country_or_group("France"));
    }
}
