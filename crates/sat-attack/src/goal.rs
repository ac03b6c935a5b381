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

/// What the attacker wants of each sample.
///
/// Labels outside `0..classes` give [`AttackError::LabelOutOfRange`](crate::AttackError) as soon
/// as the model has shown how many classes it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    pub(crate) aim: Aim,
    pub(crate) classes: Vec<i64>,
    /// The number of each sample in the data set.
    pub(crate) samples: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    Untargeted,
    Targeted,
}

impl Aim {
    /// Whether a sample with this label or target is fooled when the model predicts `prediction`.
    pub(crate) fn reached(self, class: i64, prediction: usize) -> bool {
        let same = i64::try_from(prediction) == Ok(class);
        match self {
            Aim::Untargeted => !same,
            Aim::Targeted => same,
        }
    }
}

impl Goal {
    /// Any prediction but the true label: the attack raises the loss of the label.
    pub fn untargeted(labels: impl Into<Labels>) -> Self {
        Self::new(Aim::Untargeted, labels.into())
    }

    /// The prediction `targets`: the attack lowers the loss of the target.
    pub fn targeted(targets: impl Into<Labels>) -> Self {
        Self::new(Aim::Targeted, targets.into())
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
            aim: self.aim,
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

    fn new(aim: Aim, Labels(classes): Labels) -> Self {
        Self { aim, samples: (0..classes.len() as u64).collect(), classes }
    }
}
