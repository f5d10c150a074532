//! A cluster that the earlier version made, and what must hold in it whoever runs what.
use afar_model::record::RecordKey;
use afar_tests::{
    cluster::{Cluster, MADRID, Place, STRASBOURG, Setup, WARSAW},
    command::{Afar, Ran},
    data,
    limits::SETTLE_MAX,
    programs::Programs,
    wait::until,
    wire,
    witness::Witness,
};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Fewer partitions than usual: an unoptimised planner is slow.
const PARTITIONS: u32 = 256;
/// Each is far from the others: while one is replaced, the other two take writes.
pub const THREE: [Place; 3] = [STRASBOURG, WARSAW, MADRID];

/// An object of whoever put it, and by which version.
struct Put {
    at: String,
    content: Vec<u8>,
}

/// A cluster of both versions, and what was put into it so far.
pub struct Mixed {
    pub cluster: Cluster,
    pub before: Programs,
    pub today: Programs,
    chance: ChaCha8Rng,
    objects: Vec<Put>,
}

impl Mixed {
    /// Made by the earlier client, of earlier nodes, with a bucket.
    pub fn made_before(places: &[Place]) -> Self {
        let (before, today) = (Programs::before(), Programs::today());
        let cluster = Setup::of(places).partitions(PARTITIONS).by(&before).start();
        cluster.afar().by(&before).ok(&["bucket", "create", "kept"]);
        Self { cluster, before, today, chance: data::chance(data::seed()), objects: Vec::new() }
    }

    /// The nodes that run, in the order in which they are replaced.
    pub fn names(&self) -> Vec<&'static str> {
        self.cluster.running()
    }

    /// Ends a node in order and starts it by another version; meanwhile neither client calls the cluster safe.
    #[track_caller]
    pub fn replace(&mut self, name: &str, programs: &Programs) {
        assert_eq!(self.cluster.node_mut(name).stop(), 143, "{name} ends in order");
        for client in [&self.before, &self.today] {
            until(&format!("without {name} it is not safe"), SETTLE_MAX, || {
                let status = status_by(&self.cluster.afar(), client);
                if status["state"].is_string() && status["state"] != "safe" { Ok(()) } else { Err(status.to_string()) }
            });
        }
        self.cluster.node_mut(name).run_by(programs);
        self.cluster.node_mut(name).start();
        self.cluster.wait_formed();
    }

    /// Puts an object through these nodes; it is remembered if it was acknowledged.
    pub fn put(&mut self, at: &str, nodes: &[&str], client: &Programs) -> Ran {
        // In turn: inside its version, one chunk, several.
        let length = [1_000, 300_000, 2_500_000][self.objects.len() % 3];
        let content = data::bytes(&mut self.chance, length);
        let ran = self.cluster.afar_at(nodes).by(client).run_with_input(&["put", "-", at], &content);
        if ran.code == 0 {
            self.objects.push(Put { at: at.to_owned(), content });
        }
        ran
    }

    /// Through this node, everything is read as it was put, or the node says that it does not know (14).
    #[track_caller]
    pub fn must_not_hide(&self, node: &str, client: &Programs) {
        let afar = self.cluster.afar_at(&[node]).by(client);
        let mut refused = 0;
        for object in &self.objects {
            let read = afar.run(&["cat", &object.at]).expect_one_of(&[0, 14]);
            assert!(read.code == 14 || read.stdout == object.content, "{} differs through {node}", object.at);
            refused += usize::from(read.code == 14);
        }
        let listed = afar.run(&["ls", "kept"]).expect_one_of(&[0, 14]);
        let lines = String::from_utf8_lossy(&listed.stdout).lines().count();
        assert!(listed.code == 14 || lines >= self.objects.len(), "{lines} of {} listed by {node}", self.objects.len());
        eprintln!("through {node}: {refused} of {} reads refused, listing {}", self.objects.len(), listed.code);
    }

    /// Both clients put through every node, and read everything through every other; both list it, and call it safe in the end.
    #[track_caller]
    pub fn check(&mut self) {
        for client in [self.before.clone(), self.today.clone()] {
            for node in self.names() {
                let at = format!("kept/{}", self.objects.len());
                self.put(&at, &[node], &client).expect(0);
            }
        }
        for client in [&self.before, &self.today] {
            for node in self.names() {
                let afar = self.cluster.afar_at(&[node]).by(client);
                for object in &self.objects {
                    let read = afar.ok(&["cat", &object.at]);
                    assert!(read.stdout == object.content, "{} differs through {node}", object.at);
                }
                let listed = String::from_utf8_lossy(&afar.ok(&["ls", "kept"]).stdout).lines().count();
                assert!(listed >= self.objects.len(), "{listed} of {} listed by {node}", self.objects.len());
                afar.ok(&["stat", &self.objects[0].at]);
            }
            self.wait_safe(client);
        }
    }

    #[track_caller]
    pub fn wait_safe(&self, client: &Programs) {
        until("everything is safe", SETTLE_MAX, || {
            let status = status_by(&self.cluster.afar(), client);
            if status["state"] == "safe" { Ok(()) } else { Err(status.to_string()) }
        });
    }

    /// One that has lost all its copies is started again: nobody calls anything safe before it has them again.
    #[track_caller]
    pub fn burn(&mut self, name: &str, records: &[RecordKey]) {
        let (witness, runtime) = (Witness::of(&self.cluster, "kept"), wire::runtime());
        until(&format!("{name} holds something"), SETTLE_MAX, || match runtime.block_on(witness.proves(name, records)) {
            Some(held) if !held.is_empty() => Ok(()),
            held => Err(held),
        });
        self.cluster.node_mut(name).burn();
        self.cluster.node_mut(name).start();
        for client in [&self.before, &self.today] {
            self.wait_safe(client);
            // What was said a moment ago was true. The witness may have to connect again, and then it does not know.
            until("every node was asked", SETTLE_MAX, || {
                let (near, complete) = runtime.block_on(witness.not_far(records));
                assert!(near.is_empty(), "called safe, and {} of {} records are not: {near:?}", near.len(), records.len());
                complete.then_some(()).ok_or("not every node answered")
            });
        }
        self.cluster.wait_formed();
    }
}

/// What a client of this version says.
pub fn status_by(afar: &Afar, client: &Programs) -> Value {
    serde_json::from_slice(&afar.clone().by(client).run(&["status", "--json"]).stdout).unwrap_or_default()
}
