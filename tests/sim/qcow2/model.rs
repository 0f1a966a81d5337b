//! What each byte of the disk may hold.
//!
//! Guests write to islands of a disk that is otherwise empty. An island is cut
//! into cells, the unit of requests; a cell remembers every value that it was
//! given since the last flush that is sure to have covered it.

use ringback_block::span::Span;

/// What a request puts into a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// What was there when the machine was switched on.
    Base,
    Zero,
    Fill(u8),
}

/// Bytes that are different at every place, so that none can be taken for
/// another's, and that deflate can do something with.
pub(super) fn fill_byte(fill: u8, offset: u64) -> u8 {
    let noise = (offset / 16).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    fill ^ noise as u8
}

#[derive(Clone, Debug)]
struct Cell {
    /// The number of the first value that is still remembered.
    first: usize,
    values: Vec<Value>,
    /// The number of the last value that is sure to have got there.
    acknowledged: usize,
}

impl Cell {
    fn new() -> Self {
        Self {
            first: 0,
            values: vec![Value::Base],
            acknowledged: 0,
        }
    }
}

/// A range of the disk that guests work in.
#[derive(Clone, Debug)]
pub(super) struct Island {
    pub(super) span: Span,
    cells: Vec<Cell>,
    base: Vec<u8>,
}

/// Numbers of cells in one island.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells {
    pub(super) island: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The disk as its guests know it.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) grain: u64,
    pub(super) islands: Vec<Island>,
    pub(super) flushes: usize,
    pub(super) violation: Option<String>,
}

/// The last acknowledged value of each cell at some time.
pub(super) type Acknowledged = Vec<Vec<usize>>;

impl Model {
    pub(super) fn new(grain: u64, islands: &[Span]) -> Self {
        let island = |&span: &Span| Island {
            span,
            cells: vec![Cell::new(); (span.len / grain) as usize],
            base: vec![0; span.len as usize],
        };
        Self {
            grain,
            islands: islands.iter().map(island).collect(),
            ..Self::default()
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn span(&self, cells: Cells) -> Span {
        let start = self.islands[cells.island].span.offset;
        Span::between(
            start + cells.start as u64 * self.grain,
            start + cells.end as u64 * self.grain,
        )
    }

    fn cells(&mut self, cells: Cells) -> &mut [Cell] {
        &mut self.islands[cells.island].cells[cells.start..cells.end]
    }

    /// Cells may have this value from here on.
    pub(super) fn propose(&mut self, cells: Cells, value: Value) {
        for cell in self.cells(cells) {
            cell.values.push(value);
        }
    }

    /// The value proposed as the last but `since` is there.
    pub(super) fn acknowledge(&mut self, cells: Cells, since: usize) {
        for cell in self.cells(cells) {
            cell.acknowledged = cell.first + cell.values.len() - 1 - since;
        }
    }

    pub(super) fn acknowledged(&self) -> Acknowledged {
        let of_island =
            |island: &Island| island.cells.iter().map(|cell| cell.acknowledged).collect();
        self.islands.iter().map(of_island).collect()
    }

    /// What was acknowledged then is durable now.
    pub(super) fn flushed(&mut self, then: &Acknowledged) {
        self.flushes += 1;
        for (island, then) in self.islands.iter_mut().zip(then) {
            for (cell, &number) in island.cells.iter_mut().zip(then) {
                let gone = number.saturating_sub(cell.first);
                cell.values.drain(..gone);
                cell.first += gone;
            }
        }
    }

    /// The machine has come back, with these bytes in its islands.
    pub(super) fn restart(&mut self, contents: Vec<Vec<u8>>) {
        for (island, base) in self.islands.iter_mut().zip(contents) {
            island.cells.fill(Cell::new());
            island.base = base;
        }
    }

    /// What may be there after a cut, or now, of a cell since `from`.
    fn mismatch(
        &self,
        cells: Cells,
        bytes: &[u8],
        from: impl Fn(&Cell, usize) -> usize,
    ) -> Option<String> {
        let island = &self.islands[cells.island];
        for index in cells.start..cells.end {
            let cell = &island.cells[index];
            let oldest = from(cell, index);
            if oldest < cell.first {
                // It was flushed over while somebody read.
                continue;
            }
            let allowed = &cell.values[oldest - cell.first..];
            let in_island = index * self.grain as usize;
            for place in in_island..in_island + self.grain as usize {
                let found = bytes[place - cells.start * self.grain as usize];
                let offset = island.span.offset + place as u64;
                let fits = |value: &Value| match value {
                    Value::Base => found == island.base[place],
                    Value::Zero => found == 0,
                    Value::Fill(fill) => found == fill_byte(*fill, offset),
                };
                if !allowed.iter().any(fits) {
                    return Some(format!(
                        "byte {offset:#x} is {found:#04x} (fill {:#04x}, base {:#04x}) and may be \
                         {allowed:02x?}, after {} flushes",
                        fill_byte(found, offset),
                        island.base[place],
                        self.flushes
                    ));
                }
            }
        }
        None
    }

    /// Bytes that were read between `then` and now.
    pub(super) fn check_read(&self, cells: Cells, bytes: &[u8], then: &[usize]) -> Option<String> {
        self.mismatch(cells, bytes, |_, index| then[index - cells.start])
    }

    pub(super) fn acknowledged_in(&self, cells: Cells) -> Vec<usize> {
        self.islands[cells.island].cells[cells.start..cells.end]
            .iter()
            .map(|cell| cell.acknowledged)
            .collect()
    }

    /// The bytes of an island after a cut.
    pub(super) fn check_cut(&self, island: usize, bytes: &[u8]) -> Option<String> {
        let cells = Cells {
            island,
            start: 0,
            end: self.islands[island].cells.len(),
        };
        self.mismatch(cells, bytes, |cell, _| cell.first)
    }
}
