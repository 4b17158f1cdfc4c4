//! Tensors in an Arrow table, used in place.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Int32Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, LargeBinaryArray, RecordBatch, RecordBatchReader,
};
use arrow_schema::DataType;
use bytes::Bytes;

use super::MemorySource;
use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// The stand-in for a file name in messages about Arrow tables.
const PLACE: &str = "(arrow)";

/// Reads a table with one tensor per row:
///
/// | column | type |
/// |---|---|
/// | `name` | a string |
/// | `shape` | a list of int64 (or int32) |
/// | `dtype` | a string: f32, f16, bf16, …; only for binary `data` |
/// | `data` | binary, little-endian values; or a list of float or half float |
///
/// Strings and binaries may have any width, including views and dictionary-encoded strings; lists
/// may have 32 or 64 bit offsets or a fixed size. Other columns are ignored; the schema's metadata
/// becomes the source's. Values are not copied.
///
/// # Errors
/// The reader fails, a column is missing or has another type, or a row is not a tensor.
pub fn from_arrow(reader: impl RecordBatchReader) -> Result<MemorySource<'static>> {
    let mut source = MemorySource::new();
    for (key, value) in reader.schema().metadata() {
        source.add_metadata(key.clone(), value.clone());
    }
    for batch in reader {
        let batch = batch.map_err(|error| refuse(error.to_string()))?;
        let names = texts(column(&batch, "name")?);
        let (shapes, data) = (column(&batch, "shape")?, column(&batch, "data")?);
        let dtypes = match batch.column_by_name("dtype") {
            Some(_) => texts(column(&batch, "dtype")?),
            None => vec![None; batch.num_rows()],
        };
        for (row, name) in names.into_iter().enumerate() {
            let name =
                name.ok_or_else(|| refuse("a row's name is null, or no string".to_owned()))?;
            let refuse = |reason: String| Error::tensor(PLACE.as_ref(), name, reason);
            let dims = dims(shapes, row).map_err(refuse)?;
            let (dtype, values) = values(data, dtypes[row], row).map_err(refuse)?;
            source.add(name, dtype, &dims, values)?;
        }
    }
    Ok(source)
}

fn refuse(reason: String) -> Error {
    Error::file(PLACE.as_ref(), reason)
}

/// Returns a column of the batch, after checking its offsets and text: it may come from anywhere.
fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| refuse(format!("the table has no column '{name}'")))?;
    let valid = column.to_data().validate_full();
    valid.map_err(|error| refuse(format!("column '{name}' is damaged: {error}")))?;
    Ok(column)
}

/// Returns the strings of a column; `None` for nulls and other values.
fn texts(column: &ArrayRef) -> Vec<Option<&str>> {
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().collect(),
        DataType::Utf8View => column.as_string_view().iter().collect(),
        DataType::Dictionary(_, _) => {
            let dictionary = column.as_any_dictionary();
            let values = texts(dictionary.values());
            let keys = dictionary.normalized_keys().into_iter().enumerate();
            let of = |(row, key): (usize, usize)| match column.is_null(row) {
                true => None,
                false => values.get(key).copied().flatten(),
            };
            keys.map(of).collect()
        }
        _ => vec![None; column.len()],
    }
}

fn dims(column: &ArrayRef, row: usize) -> Result<Vec<usize>, String> {
    let numbers = match column.data_type() {
        _ if column.is_null(row) => None,
        DataType::List(_) => Some(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Some(column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(_, _) => Some(column.as_fixed_size_list().value(row)),
        _ => None,
    };
    let numbers = numbers.ok_or("its shape is null, or not a list")?;
    let numbers: Vec<Option<i64>> = match numbers.data_type() {
        DataType::Int64 => numbers.as_primitive::<Int64Type>().iter().collect(),
        DataType::Int32 => {
            let numbers = numbers.as_primitive::<Int32Type>().iter();
            numbers.map(|number| number.map(i64::from)).collect()
        }
        other => return Err(format!("its shape is a list of {other}, not of int64")),
    };
    let dim = |number: Option<i64>| number.and_then(|number| usize::try_from(number).ok());
    let dims: Option<Vec<usize>> = numbers.into_iter().map(dim).collect();
    dims.ok_or("its shape has a null or a negative number".to_owned())
}

/// Returns the values of a row, and their dtype.
fn values(data: &ArrayRef, dtype: Option<&str>, row: usize) -> Result<(Dtype, Bytes), String> {
    if data.is_null(row) {
        return Err("its data is null".to_owned());
    }
    let bytes = match data.data_type() {
        DataType::List(_) => return floats(data.as_list::<i32>().value(row)),
        DataType::LargeList(_) => return floats(data.as_list::<i64>().value(row)),
        DataType::FixedSizeList(_, _) => return floats(data.as_fixed_size_list().value(row)),
        DataType::Binary => Bytes::from_owner(Cell(data.as_binary::<i32>().clone(), row)),
        DataType::LargeBinary => Bytes::from_owner(Cell(data.as_binary::<i64>().clone(), row)),
        DataType::BinaryView => Bytes::from_owner(Cell(data.as_binary_view().clone(), row)),
        other => return Err(format!("its data is {other}, neither binary nor a list")),
    };
    let dtype = dtype.ok_or("binary data needs a dtype, a string")?;
    let known = Dtype::from_name(dtype).or(Dtype::from_safetensors(dtype));
    Ok((known.ok_or(format!("unknown dtype '{dtype}'"))?, bytes))
}

fn floats(list: ArrayRef) -> Result<(Dtype, Bytes), String> {
    if list.null_count() > 0 {
        return Err("its data has nulls".to_owned());
    }
    let (dtype, values) = match list.data_type() {
        DataType::Float32 => {
            let values = list.as_primitive::<Float32Type>().values();
            (Dtype::F32, values.inner().clone())
        }
        DataType::Float16 => {
            let values = list.as_primitive::<Float16Type>().values();
            (Dtype::F16, values.inner().clone())
        }
        other => return Err(format!("its data is a list of {other}, not of floats")),
    };
    Ok((dtype, values.into()))
}

/// One value of an array of binaries, which it keeps alive.
struct Cell<A>(A, usize);

macro_rules! cell {
    ($($array:ty),+) => {$(
        impl AsRef<[u8]> for Cell<$array> {
            fn as_ref(&self) -> &[u8] {
                self.0.value(self.1)
            }
        }
    )+};
}

cell!(BinaryArray, LargeBinaryArray, BinaryViewArray);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::{Float32Builder, Int64Builder, ListBuilder};
    use arrow_array::{RecordBatchIterator, StringArray};

    use super::*;
    use crate::source::Source;

    fn table(columns: Vec<(&str, ArrayRef)>) -> Result<MemorySource<'static>> {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        from_arrow(RecordBatchIterator::new(
            [Ok(batch.clone())],
            batch.schema(),
        ))
    }

    fn lists<const N: usize>(rows: [&[i64]; N]) -> ArrayRef {
        let mut builder = ListBuilder::new(Int64Builder::new());
        for row in rows {
            builder.values().append_slice(row);
            builder.append(true);
        }
        Arc::new(builder.finish())
    }

    fn strings<const N: usize>(rows: [&str; N]) -> ArrayRef {
        Arc::new(StringArray::from(rows.to_vec()))
    }

    #[test]
    fn binaries_of_any_width_are_used_where_they_lie() {
        let rows: Vec<&[u8]> = vec![&[1; 16], &[2, 0]];
        let arrays: [ArrayRef; 3] = [
            Arc::new(BinaryArray::from(rows.clone())),
            Arc::new(LargeBinaryArray::from(rows.clone())),
            Arc::new(BinaryViewArray::from(rows.clone())),
        ];
        for data in arrays {
            let source = table(vec![
                ("name", strings(["a", "b"])),
                ("shape", lists([&[2, 2], &[]])),
                ("dtype", strings(["f32", "BF16"])),
                ("data", data),
            ])
            .unwrap();
            assert_eq!(source.tensors()[0].shape.dims(), [2, 2]);
            assert_eq!(source.tensors()[1].dtype, Dtype::BF16);
            let mut read = [0; 2];
            source.read(1, 0, &mut read).unwrap();
            assert_eq!(read, [2, 0]);
        }
    }

    #[test]
    fn lists_of_floats_need_no_dtype() {
        let mut data = ListBuilder::new(Float32Builder::new());
        for row in [&[0.0][..], &[1.0, 2.0, 3.0]] {
            data.values().append_slice(row);
            data.append(true);
        }
        let source = table(vec![
            ("name", strings(["a", "b"])),
            ("shape", lists([&[1], &[3, 1]])),
            ("data", Arc::new(data.finish())),
        ])
        .unwrap();
        let mut read = [0; 4];
        source.read(1, 4, &mut read).unwrap();
        assert_eq!(f32::from_le_bytes(read), 2.0);
    }

    #[test]
    fn strings_may_come_by_a_dictionary_and_lists_in_one_size() {
        use arrow_array::{DictionaryArray, FixedSizeListArray, types::Int8Type};
        let names: DictionaryArray<Int8Type> = ["b", "a"].into_iter().collect();
        let dtypes: DictionaryArray<Int8Type> = ["f16", "f16"].into_iter().collect();
        let shapes = [
            Some(vec![Some(1i64), Some(2)]),
            Some(vec![Some(2), Some(1)]),
        ];
        let shapes = FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>(shapes, 2);
        let data = BinaryArray::from(vec![&[0u8; 4][..], &[1; 4]]);
        let source = table(vec![
            ("name", Arc::new(names)),
            ("shape", Arc::new(shapes)),
            ("dtype", Arc::new(dtypes)),
            ("data", Arc::new(data)),
        ])
        .unwrap();
        assert_eq!(source.tensors()[0].name, "b");
        assert_eq!(source.tensors()[1].shape.dims(), [2, 1]);
        assert_eq!(source.tensors()[1].dtype, Dtype::F16);
    }

    #[test]
    fn what_is_no_tensor_is_refused_by_name() {
        let message = |columns| table(columns).unwrap_err().to_string();
        let data = || -> ArrayRef { Arc::new(BinaryArray::from(vec![&[0u8; 8][..]])) };
        let (name, shape) = (|| ("name", strings(["w"])), || ("shape", lists([&[2]])));
        assert!(message(vec![name(), shape()]).contains("no column 'data'"));
        assert!(message(vec![name(), shape(), ("data", data())]).contains("'w': binary data"));
        let typed = |dtype| {
            vec![
                name(),
                shape(),
                ("dtype", strings([dtype])),
                ("data", data()),
            ]
        };
        assert!(message(typed("f33")).contains("'w': unknown dtype 'f33'"));
        assert!(message(typed("f16")).contains("'w': 8 bytes"));
        assert!(table(typed("f32")).is_ok());
        let negative = vec![name(), ("shape", lists([&[-2]])), ("data", data())];
        assert!(message(negative).contains("'w': its shape has a null or a negative"));
        let numbers = vec![name(), shape(), ("data", lists([&[2, 3]]))];
        assert!(message(numbers).contains("'w': its data is a list of Int64"));
        let unnamed = vec![("name", lists([&[1]])), shape(), ("data", data())];
        assert!(message(unnamed).contains("name is null, or no string"));
    }
}
