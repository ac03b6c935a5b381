//! The little of Python's pickle format that CIFAR's batches use. Nothing is ever called: classes and
//! functions are names, and an object is the data that it was saved with.

use std::collections::HashMap;
use std::ops::Range;

/// More values than any official file holds; a few bytes cannot make us allocate more.
const MAX_VALUES: usize = 1 << 20;
/// Containers may lie within each other, so their number bounds the depth.
const MAX_CONTAINERS: usize = 64;

#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Int(i64),
    /// Bytes or text, where in the file they are.
    Text(Range<usize>),
    /// The name of a class or a function.
    Global,
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
}

/// Reads a pickle of protocol 2, the one of CIFAR.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), memo: HashMap::new() };
    machine.run().map_err(|reason| format!("{reason}, at byte {}", machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Item>,
    memo: HashMap<u32, Value>,
}

enum Item {
    Mark,
    Value(Value),
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Value, String> {
        let (mut values, mut containers) = (0, 0);
        loop {
            let code = self.byte()?;
            values += 1;
            containers += usize::from(b"])}t\x85\x86\x87".contains(&code));
            if values > MAX_VALUES || containers > MAX_CONTAINERS {
                return Err("more values than CIFAR has".to_owned());
            }
            match code {
                // Protocol number.
                0x80 => drop(self.byte()?),
                b'.' => return self.pop(),
                b'(' => self.stack.push(Item::Mark),
                b'N' => self.push(Value::None),
                0x88 | 0x89 => self.push(Value::Int((code == 0x88).into())),
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                b'U' => {
                    let length = self.byte()?;
                    self.text(length.into())?;
                }
                b'T' | b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                b'c' => {
                    self.line()?;
                    self.line()?;
                    self.push(Value::Global);
                }
                b'q' => {
                    let key = self.byte()?.into();
                    self.remember(key);
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key);
                }
                b'h' => {
                    let key = self.byte()?.into();
                    self.recall(key)?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                b']' => self.push(Value::List(Vec::new())),
                b'}' => self.push(Value::Dict(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items));
                }
                0x85..=0x87 => {
                    let count = usize::from(code - 0x84);
                    let mut items =
                        (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                    items.reverse();
                    self.push(Value::Tuple(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.list()?.push(item);
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.list()?.extend(items);
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.dict()?.push((key, value));
                }
                b'u' => {
                    let mut items = self.pop_to_mark()?.into_iter();
                    let dict = self.dict()?;
                    while let (Some(key), Some(value)) = (items.next(), items.next()) {
                        dict.push((key, value));
                    }
                }
                // Call a function: its arguments stand for the result.
                b'R' => {
                    let arguments = self.pop()?;
                    self.pop()?;
                    self.push(arguments);
                }
                // Give an object its state: the state stands for the object.
                b'b' => {
                    let state = self.pop()?;
                    self.pop()?;
                    self.push(state);
                }
                _ => return Err(format!("operation {code:#04x} is not one that CIFAR uses")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>, String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let start = self.at;
        self.at = end.ok_or("the file ends early")?;
        Ok(start..self.at)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let range = self.take(1)?;
        Ok(self.bytes[range.start])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let range = self.take(N)?;
        self.bytes[range].try_into().map_err(|_| "the file ends early".to_owned())
    }

    fn line(&mut self) -> Result<(), String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("the file ends early")?;
        self.take(length + 1).map(drop)
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let range = self.take(length)?;
        self.push(Value::Text(range));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Item::Value(value));
    }

    fn pop(&mut self) -> Result<Value, String> {
        match self.stack.pop() {
            Some(Item::Value(value)) => Ok(value),
            _ => Err("a value is missing".to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mut items = Vec::new();
        loop {
            match self.stack.pop() {
                Some(Item::Value(value)) => items.push(value),
                Some(Item::Mark) => break,
                None => return Err("a mark is missing".to_owned()),
            }
        }
        items.reverse();
        Ok(items)
    }

    fn list(&mut self) -> Result<&mut Vec<Value>, String> {
        match self.stack.last_mut() {
            Some(Item::Value(Value::List(list))) => Ok(list),
            _ => Err("a list is missing".to_owned()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Value, Value)>, String> {
        match self.stack.last_mut() {
            Some(Item::Value(Value::Dict(dict))) => Ok(dict),
            _ => Err("a dictionary is missing".to_owned()),
        }
    }

    /// Lists and their like are filled after they were remembered, so they are not; CIFAR's files
    /// do not come back to them.
    fn remember(&mut self, key: u32) {
        if let Some(Item::Value(value @ (Value::Text(_) | Value::Global))) = self.stack.last() {
            self.memo.insert(key, value.clone());
        }
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let value = self.memo.get(&key).cloned();
        self.push(value.ok_or("it refers to a value that CIFAR does not share")?);
        Ok(())
    }
}
