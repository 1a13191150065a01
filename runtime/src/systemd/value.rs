//! Values of properties, and the text that annotations have them in: GVariant's text
//! format (docs.gtk.org/glib/gvariant-text-format.html) without dictionaries, variants
//! and byte strings.

use serde::{Deserialize, Serialize};

/// Deepest list or tuple.
const MAX_DEPTH: usize = 8;
/// Longest text, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// A value of one of D-Bus's types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// `b`.
    Bool(bool),
    /// `y`.
    Byte(u8),
    /// `n`.
    Int16(i16),
    /// `q`.
    Uint16(u16),
    /// `i`.
    Int32(i32),
    /// `u`.
    Uint32(u32),
    /// `x`.
    Int64(i64),
    /// `t`.
    Uint64(u64),
    /// `d`.
    Double(f64),
    /// `s`.
    Text(String),
    /// `a`, with the type of its elements.
    List(Type, Vec<Value>),
    /// `(...)`.
    Tuple(Vec<Value>),
}

/// A type of D-Bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// By its letter.
    Basic(char),
    /// Of elements of one type.
    List(Box<Type>),
    /// Of values of these types.
    Tuple(Vec<Type>),
}

/// Words that precede a value, and the type that they give it.
const WORDS: [(&str, char); 10] = [
    ("boolean", 'b'),
    ("byte", 'y'),
    ("int16", 'n'),
    ("uint16", 'q'),
    ("int32", 'i'),
    ("uint32", 'u'),
    ("int64", 'x'),
    ("uint64", 't'),
    ("double", 'd'),
    ("string", 's'),
];

/// What is written there, before its type is known.
enum Node {
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Node>),
    Tuple(Vec<Node>),
    Typed(Type, Box<Node>),
}

impl Value {
    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Value, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("is longer than {MAX_TEXT} bytes"));
        }
        let mut parser = Parser { rest: text };
        let node = parser.node(0)?;
        parser.skip();
        if !parser.rest.is_empty() {
            return Err(format!("{:?} follows the value", parser.rest));
        }
        let of = node.natural().ok_or("the type of an empty list must precede it: @as []")?;
        node.typed(&of)
    }

    /// The type.
    pub fn of(&self) -> Type {
        Type::Basic(match self {
            Value::Bool(_) => 'b',
            Value::Byte(_) => 'y',
            Value::Int16(_) => 'n',
            Value::Uint16(_) => 'q',
            Value::Int32(_) => 'i',
            Value::Uint32(_) => 'u',
            Value::Int64(_) => 'x',
            Value::Uint64(_) => 't',
            Value::Double(_) => 'd',
            Value::Text(_) => 's',
            Value::List(of, _) => return Type::List(Box::new(of.clone())),
            Value::Tuple(values) => return Type::Tuple(values.iter().map(Value::of).collect()),
        })
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Basic(letter) => write!(f, "{letter}"),
            Type::List(of) => write!(f, "a{of}"),
            Type::Tuple(types) => {
                f.write_str("(")?;
                types.iter().try_for_each(|of| write!(f, "{of}"))?;
                f.write_str(")")
            }
        }
    }
}

impl Node {
    /// The type that it has when nothing else says it.
    fn natural(&self) -> Option<Type> {
        Some(match self {
            Node::Bool(_) => Type::Basic('b'),
            Node::Number(digits) if is_double(digits) => Type::Basic('d'),
            Node::Number(_) => Type::Basic('i'),
            Node::Text(_) => Type::Basic('s'),
            Node::Typed(of, _) => of.clone(),
            Node::List(nodes) => {
                let told = nodes.iter().find(|node| matches!(node, Node::Typed(..)));
                Type::List(Box::new(told.or(nodes.first())?.natural()?))
            }
            Node::Tuple(nodes) => {
                Type::Tuple(nodes.iter().map(Node::natural).collect::<Option<_>>()?)
            }
        })
    }

    fn typed(&self, of: &Type) -> Result<Value, String> {
        let wrong = || Err(format!("a value of type {of} is expected"));
        match (self, of) {
            (Node::Typed(told, node), of) if told == of => node.typed(of),
            (Node::Bool(value), Type::Basic('b')) => Ok(Value::Bool(*value)),
            (Node::Text(text), Type::Basic('s')) => Ok(Value::Text(text.clone())),
            (Node::Number(digits), Type::Basic(letter)) => number(digits, *letter),
            (Node::List(nodes), Type::List(inner)) => {
                let values = nodes.iter().map(|node| node.typed(inner));
                Ok(Value::List((**inner).clone(), values.collect::<Result<_, _>>()?))
            }
            (Node::Tuple(nodes), Type::Tuple(types))
                if nodes.len() == types.len() && !types.is_empty() =>
            {
                let values = nodes.iter().zip(types).map(|(node, of)| node.typed(of));
                Ok(Value::Tuple(values.collect::<Result<_, _>>()?))
            }
            _ => wrong(),
        }
    }
}

fn is_double(digits: &str) -> bool {
    !digits.contains(['x', 'X']) && digits.contains(['.', 'e', 'E'])
}

fn number(digits: &str, letter: char) -> Result<Value, String> {
    let wrong = || format!("{digits} is no number of type {letter}");
    if letter == 'd' {
        let value = digits.parse().ok().filter(|value: &f64| value.is_finite());
        return Ok(Value::Double(value.ok_or_else(wrong)?));
    }
    let (sign, plain) = match digits.strip_prefix('-') {
        Some(plain) => (-1, plain),
        None => (1, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let plain = match plain.strip_prefix("0x").or(plain.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => plain.parse(),
    };
    let value = sign * i128::from(plain.map_err(|_| wrong())?);
    let outside = |_| wrong();
    Ok(match letter {
        'y' => Value::Byte(value.try_into().map_err(outside)?),
        'n' => Value::Int16(value.try_into().map_err(outside)?),
        'q' => Value::Uint16(value.try_into().map_err(outside)?),
        'i' => Value::Int32(value.try_into().map_err(outside)?),
        'u' => Value::Uint32(value.try_into().map_err(outside)?),
        'x' => Value::Int64(value.try_into().map_err(outside)?),
        't' => Value::Uint64(value.try_into().map_err(outside)?),
        _ => return Err(wrong()),
    })
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes `mark`, if that comes next.
    fn takes(&mut self, mark: char) -> bool {
        self.skip();
        match self.rest.strip_prefix(mark) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes what comes next for as long as `wanted` holds.
    fn word(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn node(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} times"));
        }
        if self.takes('[') {
            return Ok(Node::List(self.nodes(']', depth)?));
        }
        if self.takes('(') {
            return Ok(Node::Tuple(self.nodes(')', depth)?));
        }
        if self.takes('@') {
            let of = self.of(depth)?;
            return Ok(Node::Typed(of, Box::new(self.node(depth + 1)?)));
        }
        match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => self.text(quote),
            Some('0'..='9' | '+' | '-' | '.') => {
                let part = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
                Ok(Node::Number(self.word(part)))
            }
            Some('a'..='z') => {
                let word = self.word(|c| c.is_ascii_alphanumeric());
                match (word.as_str(), WORDS.iter().find(|(name, _)| *name == word)) {
                    ("true", _) => Ok(Node::Bool(true)),
                    ("false", _) => Ok(Node::Bool(false)),
                    (_, Some((_, letter))) => {
                        let node = self.node(depth + 1)?;
                        Ok(Node::Typed(Type::Basic(*letter), Box::new(node)))
                    }
                    _ => Err(format!("{word:?} is neither a type nor a value (text is quoted)")),
                }
            }
            Some(other) => Err(format!("{other:?} begins no value")),
            None => Err("a value is missing".into()),
        }
    }

    fn nodes(&mut self, end: char, depth: usize) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        while !self.takes(end) {
            nodes.push(self.node(depth + 1)?);
            if !self.takes(',') {
                return match self.takes(end) {
                    true => Ok(nodes),
                    false => Err(format!("{end:?} is missing")),
                };
            }
        }
        Ok(nodes)
    }

    /// A type, as D-Bus writes it.
    fn of(&mut self, depth: usize) -> Result<Type, String> {
        if depth > MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} times"));
        }
        let mut letters = self.rest.chars();
        let letter = letters.next().unwrap_or(' ');
        self.rest = letters.as_str();
        match letter {
            'a' => Ok(Type::List(Box::new(self.of(depth + 1)?))),
            '(' => {
                let mut types = Vec::new();
                while !self.rest.starts_with(')') {
                    types.push(self.of(depth + 1)?);
                }
                self.rest = &self.rest[1..];
                Ok(Type::Tuple(types))
            }
            letter if WORDS.iter().any(|(_, known)| *known == letter) => Ok(Type::Basic(letter)),
            other => Err(format!("{other:?} is no type that is supported here")),
        }
    }

    fn text(&mut self, quote: char) -> Result<Node, String> {
        let mut letters = self.rest.chars();
        letters.next();
        let mut text = String::new();
        while let Some(letter) = letters.next() {
            match letter {
                letter if letter == quote => {
                    self.rest = letters.as_str();
                    return Ok(Node::Text(text));
                }
                '\\' => text.push(match letters.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some(other @ ('\\' | '\'' | '"')) => other,
                    other => return Err(format!("the escape {other:?} is not supported")),
                }),
                letter => text.push(letter),
            }
        }
        Err(format!("the closing {quote} is missing"))
    }
}
