//! Reads operations out of a fuzzer's bytes.

/// Bytes yet to be read. Past the end everything is zero.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    pub fn i32(&mut self) -> i32 {
        i32::from_be_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    /// A number near zero half of the time, any number otherwise.
    pub fn near(&mut self) -> i32 {
        match self.u8() {
            b if b & 1 == 0 => i32::from(self.u16() as i16),
            _ => self.i32(),
        }
    }

    /// Bytes whose length the input tells in one byte.
    pub fn short(&mut self) -> &'a [u8] {
        let n = self.u8();
        self.bytes(n.into())
    }

    /// Bytes whose length the input tells in two bytes.
    pub fn long(&mut self) -> &'a [u8] {
        let n = self.u16();
        self.bytes(n.into())
    }
}
