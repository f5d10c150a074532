//! One node after the other is replaced while everything is used: by today's, and, as long as no layout was changed, back.
use crate::mixed::{Mixed, THREE};
use afar_tests::{data, load::Load, programs::Programs};

/// Objects that are put, and all read back, in each mix.
const MORE: usize = 10;

#[track_caller]
fn replace_all(mixed: &mut Mixed, load: &Load, programs: &Programs) {
    for name in mixed.names() {
        load.disturbed(true);
        mixed.replace(name, programs);
        load.disturbed(false);
        load.go_on(MORE);
        mixed.check();
    }
}

#[test]
#[ignore = "needs the programs of an earlier version: `make test-upgrade`"]
fn nodes_are_replaced_one_by_one_under_load_and_go_back() {
    let mut mixed = Mixed::made_before(&THREE);
    let load = Load::start(&mixed.cluster, "kept", data::seed());
    load.go_on(MORE);
    mixed.check();
    let (before, today) = (mixed.before.clone(), mixed.today.clone());
    replace_all(&mut mixed, &load, &today);
    replace_all(&mut mixed, &load, &before);
    // And forward again: what the earlier one wrote meanwhile is as good.
    replace_all(&mut mixed, &load, &today);
    load.finish();
}

#[test]
#[ignore = "needs the programs of an earlier version: `make test-upgrade`"]
fn rule_25_what_burns_in_a_mixed_cluster_is_not_called_safe_before_it_is_there_again() {
    let mut mixed = Mixed::made_before(&THREE);
    let load = Load::start(&mixed.cluster, "kept", data::seed());
    load.go_on(3 * MORE);
    let today = mixed.today.clone();
    let records: Vec<_> = load.finish().into_iter().flat_map(|object| object.records).collect();
    mixed.replace("strasbourg", &today);
    // One of today's among earlier ones, then one of those.
    mixed.burn("strasbourg", &records);
    mixed.burn("warsaw", &records);
    mixed.check();
}
