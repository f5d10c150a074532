//! Records: what is encoded comes back, and what is not a record is refused without a panic.
use afar_model::{
    hlc::Stamp,
    id::{BucketId, ObjectId, RecordId, UploadId},
    limits,
    record::{
        ChunkRef, Chunker, Content, Data, Grant, Manifest, Record, RecordKind, Right, Setting, Version, check_bucket_name, check_key,
    },
};
use bytes::Bytes;
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
};

fn chunks(most: usize) -> impl Strategy<Value = Vec<ChunkRef>> {
    let chunk = (any::<[u8; 32]>(), 1..=limits::CHUNK_BYTES as u32);
    vec(chunk.prop_map(|(id, length)| ChunkRef { id: RecordId::from_bytes(id), length }), 0..most)
}

/// A version and the content that belongs inside its record.
fn versions() -> impl Strategy<Value = (Version, Vec<u8>)> {
    let chunker = Chunker::Fixed1MiB;
    let inline = vec(any::<u8>(), 0..300).prop_map(move |bytes| {
        (Content::Object { id: ObjectId::of(&bytes), size: bytes.len() as u64, data: Data::Inline, chunker }, bytes)
    });
    let direct = (any::<[u8; 32]>(), chunks(8)).prop_map(move |(id, chunks)| {
        let size = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        (Content::Object { id: ObjectId::from_bytes(id), size, data: Data::Chunks(chunks), chunker }, vec![])
    });
    let listed = (any::<[u8; 32]>(), any::<u64>(), vec(any::<[u8; 32]>(), 1..5)).prop_map(move |(id, size, manifests)| {
        let data = Data::Manifests(manifests.into_iter().map(RecordId::from_bytes).collect());
        (Content::Object { id: ObjectId::from_bytes(id), size, data, chunker }, vec![])
    });
    let content = prop_oneof![inline, direct, listed, Just((Content::DeleteMarker, vec![]))];
    let metadata = btree_map("[a-z-]{1,20}", ".{0,40}", 0..4);
    (any::<[u8; 32]>(), "[^\0]{1,80}", any::<u64>(), any::<[u8; 16]>(), content, metadata).prop_map(
        |(bucket, key, stamp, upload, (content, inline), metadata)| {
            let version = Version {
                bucket: BucketId::from_bytes(bucket),
                key,
                stamp: Stamp::from_u64(stamp),
                upload: UploadId::from_bytes(upload),
                content,
                metadata,
            };
            (version, inline)
        },
    )
}

fn settings() -> impl Strategy<Value = Setting> {
    let stamp = any::<u64>().prop_map(Stamp::from_u64);
    let right = select(vec![Right::Read, Right::Write, Right::Append, Right::Delete, Right::Admin]);
    let grant = (any::<Option<[u8; 32]>>(), vec(right, 0..5))
        .prop_map(|(bucket, rights)| Grant { bucket: bucket.map(BucketId::from_bytes), rights });
    prop_oneof![
        ("[a-z]{3,20}", crate::worlds::policies(), any::<u16>(), stamp.clone())
            .prop_map(|(name, policy, shards, stamp)| Setting::BucketCreated { name, policy, shards, stamp }),
        (any::<[u8; 32]>(), stamp.clone())
            .prop_map(|(bucket, stamp)| Setting::BucketRemoved { bucket: BucketId::from_bytes(bucket), stamp }),
        ("[A-Z0-9]{20}", ".{0,20}", vec(any::<u8>(), 0..100), vec(grant, 0..3), stamp.clone()).prop_map(
            |(access_key_id, name, sealed_secret, grants, stamp)| Setting::KeyCreated { access_key_id, name, sealed_secret, grants, stamp }
        ),
        ("[A-Z0-9]{20}", stamp).prop_map(|(access_key_id, stamp)| Setting::KeyRevoked { access_key_id, stamp }),
    ]
}

/// One thing that a disk or a liar does to bytes.
#[derive(Debug, Clone)]
enum Harm {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Append(Vec<u8>),
    Insert(prop::sample::Index, u8),
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let place = any::<prop::sample::Index>;
    let harm = prop_oneof![
        (place(), 1..=255_u8).prop_map(|(at, mask)| Harm::Flip(at, mask)),
        place().prop_map(Harm::Cut),
        vec(any::<u8>(), 1..20).prop_map(Harm::Append),
        (place(), any::<u8>()).prop_map(|(at, byte)| Harm::Insert(at, byte)),
    ];
    vec(harm, 1..4)
}

fn harmed(body: &[u8], harms: Vec<Harm>) -> Bytes {
    let mut body = body.to_vec();
    for harm in harms {
        match harm {
            Harm::Flip(at, mask) if !body.is_empty() => {
                let at = at.index(body.len());
                body[at] ^= mask;
            }
            Harm::Flip(..) => {}
            Harm::Cut(at) => body.truncate(at.index(body.len() + 1)),
            Harm::Append(more) => body.extend(more),
            Harm::Insert(at, byte) => body.insert(at.index(body.len() + 1), byte),
        }
    }
    body.into()
}

proptest! {
    #[test]
    fn a_version_comes_back((version, inline) in versions()) {
        let body = version.encode(&inline);
        let decoded = Version::decode(&body).unwrap();
        prop_assert_eq!(&decoded.version, &version);
        prop_assert_eq!(&decoded.inline[..], &inline[..]);
        let (description, offset) = Version::decode_description(&body).unwrap();
        prop_assert_eq!(description, version);
        prop_assert_eq!(&body[offset..], &inline[..]);
    }

    #[test]
    fn a_manifest_comes_back(chunks in chunks(200)) {
        let manifest = Manifest { chunks };
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn a_setting_comes_back(setting in settings()) {
        prop_assert_eq!(Setting::decode(&setting.encode()), Ok(setting));
    }

    #[test]
    fn harmed_bodies_never_panic_and_never_pass_for_the_original((version, inline) in versions(), setting in settings(), chunks in chunks(20), harms in harms()) {
        for body in [version.encode(&inline), setting.encode(), Manifest { chunks }.encode()] {
            let other = harmed(&body, harms.clone());
            let before = Record::new(RecordKind::Version, BucketId::SYSTEM, body.clone()).id();
            let after = Record::new(RecordKind::Version, BucketId::SYSTEM, other.clone()).id();
            prop_assert_eq!(before == after, body == other);
            if let Ok(decoded) = Version::decode(&other) {
                prop_assert!(check_key(&decoded.version.key).is_ok());
                prop_assert!(decoded.inline.len() <= limits::INLINE_BYTES_MAX);
            }
            let _ = (Setting::decode(&other), Manifest::decode(&other));
        }
    }

    #[test]
    fn noise_never_panics(noise in vec(any::<u8>(), 0..400)) {
        let mut noise = noise;
        for first in [0, 1, 2] {
            noise.splice(..1.min(noise.len()), [first]);
            let noise = Bytes::from(noise.clone());
            let _ = (Version::decode(&noise), Setting::decode(&noise), Manifest::decode(&noise));
        }
    }

    #[test]
    fn a_name_that_passes_fits_every_protocol(name in "[a-zA-Z0-9._/-]{0,70}") {
        if check_bucket_name(&name).is_ok() {
            prop_assert!((3..=63).contains(&name.len()) && !name.contains(['/', '_']) && name == name.to_lowercase());
        }
    }
}

/// A length prefix is a claim: it must not make the decoder reserve what is not there.
#[test]
fn a_claim_of_four_billion_chunks_is_refused() {
    let body = [1, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert!(Manifest::decode(&body).is_err());
}
