//! Attributes (`struct nlattr` of include/uapi/linux/netlink.h): two bytes of length, two of type, a payload, padding to
//! a multiple of four. A payload may be attributes again.

/// The length of `struct nlattr` in bytes.
const HEADER: usize = 4;

/// `NLA_F_NESTED`: the payload is attributes.
const NESTED: u16 = 1 << 15;

/// `NLA_TYPE_MASK`: a type without flags.
const KIND: u16 = 0x3fff;

/// The attributes of a request, as they are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body(Vec<u8>);

impl Body {
    /// A body without attributes.
    pub const EMPTY: Self = Self(Vec::new());

    /// The limit of one payload in bytes: the length is a number of 16 bits and counts the header.
    pub const MAX_PAYLOAD: usize = u16::MAX as usize - HEADER;

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no attributes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes as they are sent.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends an attribute with these bytes.
    ///
    /// # Panics
    /// If the payload is longer than [`Self::MAX_PAYLOAD`].
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        self.with(kind, |body| body.0.extend_from_slice(payload))
    }

    /// Appends a string and its terminating NUL.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.with(kind, |body| {
            body.0.extend_from_slice(text.as_bytes());
            body.0.push(0);
        })
    }

    /// Appends a number of 8 bits.
    pub fn u8(&mut self, kind: u16, number: u8) -> &mut Self {
        self.bytes(kind, &[number])
    }

    /// Appends a number of 16 bits.
    pub fn be16(&mut self, kind: u16, number: u16) -> &mut Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// Appends a number of 32 bits.
    pub fn be32(&mut self, kind: u16, number: u32) -> &mut Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// Appends a number of 64 bits.
    pub fn be64(&mut self, kind: u16, number: u64) -> &mut Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// Appends nested attributes.
    ///
    /// # Panics
    /// If they are longer than [`Self::MAX_PAYLOAD`].
    pub fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) -> &mut Self {
        self.with(kind | NESTED, write)
    }

    /// Appends nested attributes that are encoded already.
    ///
    /// # Panics
    /// If they are longer than [`Self::MAX_PAYLOAD`].
    pub fn nested_bytes(&mut self, kind: u16, attributes: &[u8]) -> &mut Self {
        self.bytes(kind | NESTED, attributes)
    }

    /// Appends all attributes of another body.
    pub fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    fn with(&mut self, kind: u16, write: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; HEADER]);
        write(self);
        let length = u16::try_from(self.0.len() - start).expect("lists are split below 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        // Inner payloads end at a multiple of four, so that only the outer one is padded here.
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// One attribute of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The type, without flags.
    pub kind: u16,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// A string up to its NUL, or to its end; `None` if it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        std::str::from_utf8(self.payload.split(|b| *b == 0).next()?).ok()
    }

    /// A number of 8 bits; `None` for a payload of another length.
    #[must_use]
    pub fn u8(&self) -> Option<u8> {
        self.payload.try_into().ok().map(u8::from_be_bytes)
    }

    /// A number of 16 bits; `None` for a payload of another length.
    #[must_use]
    pub fn be16(&self) -> Option<u16> {
        self.payload.try_into().ok().map(u16::from_be_bytes)
    }

    /// A number of 32 bits; `None` for a payload of another length.
    #[must_use]
    pub fn be32(&self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_be_bytes)
    }

    /// A number of 64 bits; `None` for a payload of another length.
    #[must_use]
    pub fn be64(&self) -> Option<u64> {
        self.payload.try_into().ok().map(u64::from_be_bytes)
    }

    /// The nested attributes.
    #[must_use]
    pub const fn nested(&self) -> Attributes<'a> {
        Attributes(self.payload)
    }
}

/// Attributes, read in place. A truncated one ends the iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes in a payload.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The first attribute of a type.
    #[must_use]
    pub fn find(mut self, kind: u16) -> Option<Attribute<'a>> {
        Iterator::find(&mut self, |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let field = |at: usize| self.0.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let length = usize::from(field(0)?);
        let kind = field(2)? & KIND;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, payload })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut body = Body::default();
        body.text(1, "towpath").be16(2, 0x1234).nest(3, |inner| {
            inner.u8(1, 7).be32(2, 0x0102_0304).be64(3, 9);
        });
        assert_eq!(body.len() % 4, 0, "every attribute begins at a multiple of four");
        assert_eq!(&body.as_bytes()[..12], [[12, 0, 1, 0], *b"towp", *b"ath\0"].concat(), "a string has its NUL");
        let all = Attributes::new(body.as_bytes());
        assert_eq!(all.map(|a| a.kind).collect::<Vec<_>>(), [1, 2, 3], "types without NLA_F_NESTED");
        assert_eq!(all.find(1).and_then(|a| a.text()), Some("towpath"));
        assert_eq!(all.find(2).and_then(|a| a.be16()), Some(0x1234));
        let inner = all.find(3).unwrap().nested();
        let numbers = [
            inner.find(1).and_then(|a| a.u8()).map(u64::from),
            inner.find(2).and_then(|a| a.be32()).map(u64::from),
            inner.find(3).and_then(|a| a.be64()),
        ];
        assert_eq!(numbers, [Some(7), Some(0x0102_0304), Some(9)]);
        assert_eq!(inner.find(2).and_then(|a| a.be16()), None, "a number of another size");
        assert_eq!(inner.find(4), None);
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / 4);
        }
    }
}
