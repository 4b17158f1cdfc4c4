//! The footer of a Parquet file: what it says of the whole model, and of every row group.

use crate::schema::{FORMAT_VERSION, GENERATOR, key};
use crate::sink::Footer;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::schema::types::SchemaDescPtr;

/// Row groups as they will stand in the footer. As the parquet crate holds them each would take
/// ten times the memory, which tells for models of many small tensors.
#[derive(Debug, Default)]
pub(super) struct RowGroups {
    /// One after the other, in the Thrift compact protocol.
    text: Vec<u8>,
    count: usize,
    rows: i64,
    /// Any of them, without rows.
    sample: Option<RowGroupMetaData>,
}

impl RowGroups {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// What [`RowGroups::rewind`] goes back to.
    pub(super) fn mark(&self) -> (usize, usize, i64) {
        (self.text.len(), self.count, self.rows)
    }

    pub(super) fn rewind(&mut self, (text, count, rows): (usize, usize, i64)) {
        self.text.truncate(text);
        (self.count, self.rows) = (count, rows);
        if count == 0 {
            self.sample = None;
        }
    }

    /// Adds a row group after the others.
    pub(super) fn push(&mut self, row_group: RowGroupMetaData) -> Result<(), ParquetError> {
        let rows = row_group.num_rows();
        let sample = row_group.clone().into_builder().set_num_rows(0).build()?;
        let file = FileMetaData::new(1, 0, None, None, row_group.schema_descr_ptr(), None);
        let around = Around::new(&file, &sample)?;
        let whole = encode(&file, vec![row_group])?;
        let start = around.before().len() + around.between(rows, 1).len();
        self.text
            .extend(&whole[start..whole.len() - around.after().len()]);
        self.rows += rows;
        self.count += 1;
        self.sample = Some(sample);
        Ok(())
    }

    /// Hands the whole footer to `write`, its length and the magic number at the end included.
    pub(super) fn finish(
        &self,
        footer: Footer,
        schema: SchemaDescPtr,
        write: &mut dyn FnMut(&[u8]) -> Result<(), ParquetError>,
    ) -> Result<(), ParquetError> {
        let source_metadata = serde_json::json!(footer.source_metadata).to_string();
        let mut entries = vec![
            (key::FORMAT_VERSION, FORMAT_VERSION.to_string()),
            (key::MODALITY, footer.modality),
            (key::CONFIG, footer.config.to_string()),
            (key::SOURCE, footer.source.to_string()),
            (key::SOURCE_METADATA, source_metadata),
            (key::GENERATOR, GENERATOR.to_owned()),
            (key::SUMMARY, footer.summary.to_string()),
        ];
        entries.extend(footer.part.map(|part| (key::PART, part.to_string())));
        let entries = entries
            .into_iter()
            .map(|(key, value)| KeyValue::new(key.to_owned(), value))
            .collect();
        let generator = Some(GENERATOR.to_owned());
        let file = FileMetaData::new(1, self.rows, generator, Some(entries), schema, None);
        // There are no page indexes, so nothing in the footer depends on where it stands.
        let Some(sample) = &self.sample else {
            return end(&[&encode(&file, Vec::new())?], write);
        };
        let around = Around::new(&file, sample)?;
        let between = around.between(self.rows, self.count);
        end(
            &[around.before(), &between, &self.text, around.after()],
            write,
        )
    }
}

/// Writes the parts of a footer, and what ends a file.
fn end(
    parts: &[&[u8]],
    write: &mut dyn FnMut(&[u8]) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    parts.iter().try_for_each(|part| write(part))?;
    write(&(len as u32).to_le_bytes())?;
    write(b"PAR1")
}

/// A footer without row groups. In it come, one after the other: the number of rows (field 3, an
/// i64), and the list of row groups (field 4).
struct Around {
    text: Vec<u8>,
    /// Where the header of the empty list is.
    list: usize,
}

impl Around {
    /// Finds the list: the first byte that is another with a row group in it.
    fn new(file: &FileMetaData, without_rows: &RowGroupMetaData) -> Result<Self, ParquetError> {
        let text = encode(file, Vec::new())?;
        let with = encode(file, vec![without_rows.clone()])?;
        let place = text.iter().zip(&with).position(|(a, b)| a != b);
        let around = Self {
            list: place.unwrap_or(0),
            text,
        };
        let (before, between) = (around.list.checked_sub(2), around.between(0, 0));
        match before.and_then(|before| around.text.get(before..before + between.len())) {
            Some(found) if found == between => Ok(around),
            _ => Err(ParquetError::General(
                "the footer is not as expected".into(),
            )),
        }
    }

    /// Up to the number of rows.
    fn before(&self) -> &[u8] {
        &self.text[..self.list - 2]
    }

    /// The number of rows, and the header of the list.
    fn between(&self, rows: i64, groups: usize) -> Vec<u8> {
        /// A list, one field after the number of rows.
        const FIELD: u8 = 0x19;
        /// The type of the elements.
        const STRUCT: u8 = 12;
        let mut text = varint((rows as u64) << 1); // zigzag
        text.push(FIELD);
        match groups {
            0..15 => text.push((groups as u8) << 4 | STRUCT),
            _ => {
                text.push(0xF0 | STRUCT);
                text.extend(varint(groups as u64));
            }
        }
        text
    }

    /// What follows the list.
    fn after(&self) -> &[u8] {
        &self.text[self.list + 1..]
    }
}

/// Seven bits a byte, the lowest first; all but the last have the eighth set.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// The footer without its length and the magic number.
fn encode(file: &FileMetaData, groups: Vec<RowGroupMetaData>) -> Result<Vec<u8>, ParquetError> {
    let mut text = Vec::new();
    let metadata = ParquetMetaData::new(file.clone(), groups);
    ParquetMetaDataWriter::new(&mut text, &metadata).finish()?;
    text.truncate(text.len() - 8);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use parquet::file::metadata::ColumnChunkMetaData;
    use serde_json::Value;

    use super::*;
    use crate::schema::parquet_schema;

    /// The whole footer, made by the parquet crate at once, is the same.
    #[test]
    fn row_groups_stand_as_the_parquet_crate_writes_them() {
        let schema: SchemaDescPtr = Arc::new(parquet_schema());
        let footer = || Footer {
            modality: "text".into(),
            config: Value::Null,
            source: Value::Null,
            source_metadata: BTreeMap::new(),
            summary: Value::Null,
            part: None,
        };
        for count in [0, 1, 14, 15, 300] {
            let group = |ordinal: i32| {
                let chunk = |column: usize| {
                    ColumnChunkMetaData::builder(schema.column(column))
                        .set_data_page_offset(i64::from(ordinal) * 1000 + column as i64)
                        .build()
                        .unwrap()
                };
                RowGroupMetaData::builder(schema.clone())
                    .set_num_rows(i64::from(ordinal) * 7 + 1)
                    .set_ordinal(ordinal)
                    .set_column_metadata((0..schema.num_columns()).map(chunk).collect())
                    .build()
                    .unwrap()
            };
            let groups: Vec<_> = (0..count).map(group).collect();
            let mut ours = RowGroups::default();
            for group in &groups {
                ours.push(group.clone()).unwrap();
            }
            let mut found = Vec::new();
            let write = &mut |bytes: &[u8]| {
                found.extend(bytes);
                Ok(())
            };
            ours.finish(footer(), schema.clone(), write).unwrap();
            let read = parquet::file::metadata::ParquetMetaDataReader::decode_metadata(
                &found[..found.len() - 8],
            )
            .unwrap();
            assert_eq!(read.row_groups(), groups);
            let mut expected = encode(read.file_metadata(), groups).unwrap();
            expected.extend((expected.len() as u32).to_le_bytes());
            expected.extend(b"PAR1");
            assert!(found == expected, "{count} row groups");
        }
    }
}
