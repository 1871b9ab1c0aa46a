//! What is stored: the same bytes for a key, whoever stores it.

use bytes::Bytes;
use clap::ValueEnum;

use crate::patients;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Bytes that do not compress, all of one length
    Random,
    /// Records of the synthetic patients, as they are
    Fhir,
}

/// As many patients as make some thousand records of all types.
const PATIENTS: usize = 3;

pub enum Values {
    Random { bytes: usize },
    Fhir(Vec<Bytes>),
}

impl Values {
    pub fn new(kind: Kind, bytes: usize) -> Self {
        match kind {
            Kind::Random => Self::Random { bytes },
            Kind::Fhir => {
                let entries = (1..=PATIENTS).flat_map(|number| patients::bundle(number).entries);
                Self::Fhir(entries.map(|entry| entry.body).collect())
            }
        }
    }

    pub fn of(&self, key: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(key);
        match self {
            Self::Random { bytes } => {
                let mut value = vec![0; *bytes];
                random.fill(&mut value);
                value
            }
            Self::Fhir(records) => records[random.usize(0..records.len())].to_vec(),
        }
    }
}
