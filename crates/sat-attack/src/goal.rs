use burn::tensor::{Int, Tensor};

/// One class number per sample, on the host.
///
/// Made from a `Vec<usize>`, an array, a slice or an integer tensor. A tensor is read back from
/// its device, which waits for the device once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(Vec<i64>);

impl From<Vec<usize>> for Labels {
    fn from(labels: Vec<usize>) -> Self {
        labels.as_slice().into()
    }
}

impl From<&[usize]> for Labels {
    fn from(labels: &[usize]) -> Self {
        // A number beyond i64 is no class of any model: the range check will refuse it.
        Self(labels.iter().map(|&label| i64::try_from(label).unwrap_or(i64::MAX)).collect())
    }
}

impl<const N: usize> From<[usize; N]> for Labels {
    fn from(labels: [usize; N]) -> Self {
        labels.as_slice().into()
    }
}

impl From<Tensor<1, Int>> for Labels {
    /// # Panics
    ///
    /// When the device fails to hand back the tensor.
    fn from(labels: Tensor<1, Int>) -> Self {
        Self(labels.into_data().iter::<i64>().collect())
    }
}

/// What the attacker wants of one sample; for [`Goal::mixed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Any prediction but this label.
    Untargeted(usize),
    /// The prediction of this class.
    Targeted(usize),
}

/// What the attacker wants of each sample.
///
/// Labels outside `0..classes` give [`AttackError::LabelOutOfRange`](crate::AttackError) as soon
/// as the model has shown how many classes it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    pub(crate) directions: Vec<Direction>,
    /// The label or target of each sample.
    pub(crate) classes: Vec<i64>,
    /// The number of each sample in the data set.
    pub(crate) samples: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the label.
    Away,
    /// To the target.
    Towards,
}

impl Direction {
    /// Whether a sample with this label or target is fooled when the model predicts `prediction`.
    pub(crate) fn reached(self, class: i64, prediction: usize) -> bool {
        let same = i64::try_from(prediction) == Ok(class);
        match self {
            Direction::Away => !same,
            Direction::Towards => same,
        }
    }

    /// 1 where the attacker raises the loss, -1 where it lowers it.
    pub(crate) fn sign(self) -> f32 {
        match self {
            Direction::Away => 1.0,
            Direction::Towards => -1.0,
        }
    }
}

impl Goal {
    /// Any prediction but the true label: the attack raises the loss of the label.
    pub fn untargeted(labels: impl Into<Labels>) -> Self {
        Self::new(Direction::Away, labels.into())
    }

    /// The prediction `targets`: the attack lowers the loss of the target.
    pub fn targeted(targets: impl Into<Labels>) -> Self {
        Self::new(Direction::Towards, targets.into())
    }

    /// An aim of its own for each sample, in the order of the batch.
    ///
    /// Attacks that need an untargeted goal refuse a batch with any target.
    pub fn mixed(aims: impl IntoIterator<Item = Aim>) -> Self {
        let (directions, classes): (Vec<_>, Vec<_>) = aims
            .into_iter()
            .map(|aim| match aim {
                Aim::Untargeted(label) => (Direction::Away, label),
                Aim::Targeted(target) => (Direction::Towards, target),
            })
            .unzip();
        Self { directions, ..Self::new(Direction::Away, classes.into()) }
    }

    /// Says that the batch holds the samples `first, first + 1, ...` of a data set (default 0).
    ///
    /// The numbers choose the samples' random streams. With them the result of a sample does not
    /// depend on how the data set is cut into batches; without them every batch draws the same
    /// noise from the same seed. Training counts the samples seen so far.
    pub fn numbered_from(mut self, first: u64) -> Self {
        self.samples = (first..).take(self.classes.len()).collect();
        self
    }

    /// The goal of the samples at `rows`, which keep their numbers.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self {
            directions: rows.iter().map(|&row| self.directions[row]).collect(),
            classes: rows.iter().map(|&row| self.classes[row]).collect(),
            samples: rows.iter().map(|&row| self.samples[row]).collect(),
        }
    }

    /// The same goal with other random streams, for a repetition.
    pub(crate) fn repetition(mut self, repetition: u64) -> Self {
        // Data sets stay far below 2^40 samples.
        for sample in &mut self.samples {
            *sample ^= repetition << 40;
        }
        self
    }

    fn new(direction: Direction, Labels(classes): Labels) -> Self {
        let count = classes.len();
        Self { directions: vec![direction; count], samples: (0..count as u64).collect(), classes }
    }
}
