//! Promises that change: a bucket gets more copies, or copies further apart, and may get its old promise back, while it is
//! written and read.
use afar_model::{
    policy::{Policy, VerifyDistance},
    units::Metres,
};
use afar_tests::{
    cluster::{MADRID, STRASBOURG, Setup, WARSAW},
    data,
    limits::SETTLE_MAX,
    load::Load,
    operator::{Operator, summary},
    wait::until,
    wire,
};
use std::collections::BTreeMap;

#[test]
fn a_promise_is_raised_kept_and_taken_back_while_the_bucket_is_in_use() {
    let mut cluster = Setup::of(&[STRASBOURG, WARSAW, MADRID]).partitions(256).start();
    let operator = Operator::of(&cluster);
    cluster.bucket("promised", &[]);
    let load = Load::start(&cluster, "promised", data::seed());
    load.go_on(20);
    cluster.wait_state("safe");
    let (bucket, was) = (load.witness().bucket(), Policy { verify_distance: VerifyDistance::Off, ..Policy::default() });
    // Three copies: not safe as long as one of the three sites cannot have its own.
    let three = Policy { copies: 3, ..was.clone() };
    operator.apply(&cluster, |document| document.promises = vec![(bucket, three)]).unwrap();
    load.disturbed(true);
    cluster.node_mut("madrid").kill();
    let afar = cluster.afar_at(&["strasbourg", "warsaw"]);
    let status = until("it is not safe", SETTLE_MAX, || {
        let ran = afar.run(&["status", "--json"]);
        if ran.code == 5 && ran.json()["objects"]["safe"] == 0 { Ok(ran.json()) } else { Err(ran.to_string()) }
    });
    assert_ne!(status["state"], "safe", "{}", summary(&status));
    cluster.node_mut("madrid").start();
    cluster.wait_formed();
    load.disturbed(false);
    load.go_on(10);
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    let copies = |load: &Load| {
        let (held, runtime) = (load.witness().clone(), wire::runtime());
        let copies = runtime.block_on(held.copies());
        load.objects()
            .into_iter()
            .flat_map(|object| object.records)
            .map(|key| (key, copies.get(&key).map_or(0, |names| names.len())))
            .collect::<BTreeMap<_, _>>()
    };
    let wait_copies = |wanted: usize| {
        until(&format!("every record has {wanted} copies"), SETTLE_MAX, || {
            load.check();
            let found = copies(&load);
            let others = found.values().filter(|count| **count != wanted).count();
            if others == 0 { Ok(()) } else { Err(format!("{others} of {} have not", found.len())) }
        });
    };
    wait_copies(3);

    // Further apart than Strasbourg and Warsaw are.
    let further = Policy { min_distance: Metres::from_km(1200), ..was };
    operator.apply(&cluster, |document| document.promises = vec![(bucket, further)]).unwrap();
    load.go_on(10);
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    let (held, runtime) = (load.witness().clone(), wire::runtime());
    until("all copies but Madrid's and one other are dropped", SETTLE_MAX, || {
        load.check();
        let copies = runtime.block_on(held.copies());
        let wrong = copies.values().filter(|names| names.len() != 2 || !names.contains("madrid")).count();
        if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {}", copies.len())) }
    });

    // And back.
    operator.apply(&cluster, |document| document.promises.clear()).unwrap();
    load.go_on(10);
    operator.wait_in_force(&cluster);
    cluster.wait_state("safe");
    wait_copies(2);
    load.finish();
}
