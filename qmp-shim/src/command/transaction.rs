//! `transaction`: actions that happen all at once or not at all.

use super::argument::{Argument, Arguments, Member, Members, arguments, objects, read_list};
use super::backup::{BlockdevBackup, DriveBackup};
use super::bitmap::{BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge};
use super::snapshot::{BlockdevSnapshot, BlockdevSnapshotInternal, BlockdevSnapshotSync};
use crate::error::Result;
use crate::visit::{Reader, words};

arguments! {
    /// Arguments of `transaction`.
    pub struct Transaction {
        /// What shall happen, in this order. It may be nothing.
        actions: Vec<TransactionAction> = "actions",
        /// How it ends.
        properties: Option<TransactionProperties> = "properties",
    }

    /// How the jobs of a transaction end.
    pub struct TransactionProperties {
        /// Each for itself, which is the default, or together.
        completion_mode: Option<ActionCompletionMode> = "completion-mode",
    }
}

words! {
    /// How the jobs of a transaction end.
    pub enum ActionCompletionMode {
        /// Each for itself.
        Individual = "individual",
        /// If one fails, all fail; if all succeed, they end together.
        Grouped = "grouped",
    }
}

/// Declares the actions: the enum, and what each has as its `data`.
macro_rules! actions {
    ($($word:literal => $variant:ident($data:ty),)*) => {
        words! {
            /// What an action does.
            enum Kind {
                /// It fails.
                Abort = "abort",
                $(#[doc = concat!("As the command `", $word, "`.")] $variant = $word,)*
            }
        }

        /// One action.
        #[derive(Debug, Clone, PartialEq)]
        pub enum TransactionAction {
            /// It fails, and with it the transaction.
            Abort,
            $(#[doc = concat!("As the command `", $word, "`.")] $variant($data),)*
        }

        impl TransactionAction {
            /// The word for it.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    Self::Abort => "abort",
                    $(Self::$variant(_) => $word,)*
                }
            }
        }

        impl Members for TransactionAction {
            fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
                Ok(match Member::read_member(reader, "type")? {
                    Kind::Abort => {
                        let () = read_data(reader)?;
                        Self::Abort
                    }
                    $(Kind::$variant => Self::$variant(read_data(reader)?),)*
                })
            }
        }
    };
}

actions! {
    "block-dirty-bitmap-add" => BlockDirtyBitmapAdd(BlockDirtyBitmapAdd),
    "block-dirty-bitmap-remove" => BlockDirtyBitmapRemove(BlockDirtyBitmap),
    "block-dirty-bitmap-clear" => BlockDirtyBitmapClear(BlockDirtyBitmap),
    "block-dirty-bitmap-enable" => BlockDirtyBitmapEnable(BlockDirtyBitmap),
    "block-dirty-bitmap-disable" => BlockDirtyBitmapDisable(BlockDirtyBitmap),
    "block-dirty-bitmap-merge" => BlockDirtyBitmapMerge(BlockDirtyBitmapMerge),
    "blockdev-backup" => BlockdevBackup(Box<BlockdevBackup>),
    "blockdev-snapshot" => BlockdevSnapshot(BlockdevSnapshot),
    "blockdev-snapshot-internal-sync" => BlockdevSnapshotInternalSync(BlockdevSnapshotInternal),
    "blockdev-snapshot-sync" => BlockdevSnapshotSync(BlockdevSnapshotSync),
    "drive-backup" => DriveBackup(Box<DriveBackup>),
}

objects! { TransactionAction, }

fn read_data<T: Arguments>(reader: &mut Reader<'_>) -> Result<T> {
    reader.required("data", |reader, name| {
        let inner = reader.object(name)?;
        inner.map(T::read_object).transpose()
    })
}

impl Argument for Vec<TransactionAction> {
    fn read_argument(reader: &mut Reader<'_>, name: &'static str) -> Result<Option<Self>> {
        read_list(reader, name, TransactionAction::read_object)
    }
}
