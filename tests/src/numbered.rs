//! Records that are known by their numbers: whoever reads one knows what it should say.

use charthold_client::{Chart, Client, Put, RecordId};

/// So many records of so many bytes each, in as many charts.
#[derive(Clone, Copy, Debug)]
pub struct Numbered {
    pub records: usize,
    pub bytes: usize,
}

impl Numbered {
    pub fn place(&self, number: usize) -> (Chart, RecordId) {
        (Chart::patient(format!("p{number}")), RecordId::new("Note", "n"))
    }

    pub fn body(&self, number: usize) -> String {
        let mut random = fastrand::Rng::with_seed(number as u64);
        std::iter::repeat_with(|| random.alphanumeric()).take(self.bytes).collect()
    }

    pub async fn put_all(&self, client: &Client) {
        for number in 0..self.records {
            let (chart, record) = self.place(number);
            let put = client.put(&chart, &record, Put::new("text/plain", self.body(number))).await;
            put.unwrap_or_else(|error| panic!("record {number}: {error}"));
        }
    }

    /// How many records were not read. Those that were are right.
    pub async fn read_all(&self, client: &Client) -> usize {
        let mut failed = 0;
        for number in 0..self.records {
            failed += usize::from(!self.read(client, number).await);
        }
        failed
    }

    /// Whether it was read. If so, it is right.
    pub async fn read(&self, client: &Client, number: usize) -> bool {
        let (chart, record) = self.place(number);
        let Ok(read) = client.get(&chart, &record).await else { return false };
        assert_eq!(read.body, self.body(number).as_bytes(), "record {number}: a wrong answer");
        true
    }
}
