//! `afar cluster adopt`: a cluster that an earlier version made gets keys that sign layouts. Run again, it says how far that is.
// Doc comments of arguments are their help texts: square brackets are syntax there, not links.
#![allow(rustdoc::broken_intra_doc_links)]
use super::{Session, operate};
use crate::{
    cluster::{
        adoption::Adoption,
        config_file::custodian_lines,
        operator::{Operator, Said, ask_known},
    },
    error::Error,
};
use clap::Args;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf};

/// Give a cluster of an earlier version the keys that sign layouts
#[derive(Debug, Args)]
#[command(after_help = "\
For a cluster whose nodes' files name no custodians under [layout]. In this order:
  afar cluster adopt --dir DIR     DIR as the earlier `afar cluster init` made it, with ca/ and nodes/
  (upgrade every node; put what it shows into each node's afard.toml; restart them one at a time)
  afar cluster adopt --dir DIR     says which nodes are ready; when all are, the layout can change")]
pub struct Adopt {
    /// Cluster's folder [env: AFAR_CLUSTER_DIR]
    #[arg(long, value_name = "DIR", env = "AFAR_CLUSTER_DIR", default_value = ".", hide_env = true, hide_default_value = true)]
    dir: PathBuf,
}

pub(super) async fn run(session: &Session, Adopt { dir }: Adopt) -> Result<u8, Error> {
    if dir.join("cluster.toml").exists() {
        let operator = Operator::open(&dir)?;
        let said = operator.listen(&operate::client(&dir, &operator.head()?.layout)?).await?;
        return tell(session, &operator, &said, false);
    }
    let adoption = Adoption::read(&dir)?;
    let said = ask_known(&operate::client(&dir, &adoption.genesis(Vec::new())?.layout)?).await?;
    adoption.compare(&said)?;
    tell(session, &adoption.write()?, &said, true)
}

fn tell(session: &Session, operator: &Operator, said: &[Said], made: bool) -> Result<u8, Error> {
    let (head, own) = (operator.head()?, operator.custodian()?.public());
    let (mut ready, mut waiting) = (Vec::new(), BTreeMap::new());
    for node in head.document.nodes.iter().filter(|node| node.duty.is_member()) {
        let why = match said.iter().find(|said| said.node == node.name) {
            Some(said) if said.believes(&own) => {
                ready.push(node.name.clone());
                continue;
            }
            Some(_) => "does not let this folder's key sign: its afard.toml must name it, then restart it",
            None => "does not answer, or runs a version that knows no layouts but its configuration's",
        };
        waiting.insert(node.name.clone(), why);
    }
    let (custodians, dir) = (&head.document.custodians, operator.folder().display().to_string());
    session.out.either(
        || json!({"made": made, "custodians": custodians.iter().map(hex::encode).collect::<Vec<_>>(), "ready": ready, "waiting": waiting}),
        || {
            let mut lines = Vec::new();
            if made {
                lines.push(format!("made {dir}/layout and {dir}/recovery: who has one of these two keys may change the cluster's layout"));
            }
            lines.extend(ready.iter().map(|node| format!("  {node}: ready")));
            lines.extend(waiting.iter().map(|(node, why)| format!("  {node}: {why}")));
            if waiting.is_empty() {
                lines.push("every node lets this folder's key sign layouts".into());
                return lines.join("\n");
            }
            lines.push("next:".into());
            lines.push(format!("  this belongs under [layout] in every node's afard.toml; in {dir}/nodes it is there:"));
            lines.extend(custodian_lines(custodians).lines().map(|line| format!("    {line}")));
            lines
                .push("  then restart the nodes, one at a time, by today's afard; one of an earlier version does not start with it".into());
            lines.push(format!("  keep {dir}/ca and {dir}/layout away from the nodes, and {dir}/recovery somewhere else entirely"));
            lines.push(format!("  afar cluster adopt --dir {dir}     says again which nodes are ready"));
            lines.join("\n")
        },
    )?;
    Ok(0)
}
