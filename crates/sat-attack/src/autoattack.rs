use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Oracle, read};
use crate::ensemble::Log;
use crate::wrappers::Eot;
use crate::{
    Adversarial, Apgd, Attack, AttackError, Ensemble, Fab, FewClasses, Flag, Goal, Loss, Norm,
    Square, ThreatModel, Victim,
};

/// AutoAttack (Croce and Hein 2020, arXiv 2003.01690): the parameter-free ensemble by which robust
/// accuracy is compared, with the official attacks, settings and order.
///
/// | version | attacks |
/// |---|---|
/// | [`standard`](Self::standard) | APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square (5,000 queries) |
/// | [`plus`](Self::plus) | APGD-CE and APGD-DLR (5 restarts), FAB (5 restarts), Square, APGD-T, FAB-T |
/// | [`rand`](Self::rand) | APGD-CE and APGD-DLR on the mean of 20 gradients, for randomised models |
/// | [`custom`](Self::custom) | any list, with the settings of `standard`; APGD-DLR and FAB with one run |
///
/// 100 steps each. For L1, `standard` shrinks the radius in APGD, with 5 restarts and 5 targets
/// (arXiv 2103.01208).
///
/// Every attack works on the samples that withstood those before it, and a sample leaves as soon as
/// it is fooled (but for `rand`, where one pass that fools says little: all steps are taken); targets
/// are the most likely other classes, at most as many as there are. The random draws of a sample depend
/// on the seed and its number in the data set alone, not on its batch. Needs an untargeted goal.
///
/// The result's flags are the official ones; the checks of the model's output are made on the batch
/// that starts with sample 0, at the cost of 5 passes.
#[derive(Clone, Serialize)]
pub struct AutoAttack {
    version: Version,
    attacks: Vec<Member>,
    seed: u64,
    steps: usize,
    queries: usize,
    few_classes: FewClasses,
    #[serde(skip)]
    log: Option<Log>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Version {
    Standard,
    Plus,
    Rand,
    Custom,
}

/// An attack of AutoAttack's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Member {
    /// APGD on the cross-entropy.
    ApgdCe,
    /// APGD on the difference of logits ratio.
    ApgdDlr,
    /// APGD on the targeted difference of logits ratio.
    ApgdT,
    /// FAB.
    Fab,
    /// FAB against one class at a time.
    FabT,
    /// Square.
    Square,
}

const MEMBERS: [(Member, &str); 6] = [
    (Member::ApgdCe, "apgd-ce"),
    (Member::ApgdDlr, "apgd-dlr"),
    (Member::ApgdT, "apgd-t"),
    (Member::Fab, "fab"),
    (Member::FabT, "fab-t"),
    (Member::Square, "square"),
];

impl Member {
    /// The official name, such as `apgd-ce`.
    pub fn name(self) -> &'static str {
        MEMBERS.iter().find(|(member, _)| *member == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no [`Member`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown attack `{0}`: use apgd-ce, apgd-dlr, apgd-t, fab, fab-t or square")]
pub struct ParseMemberError(String);

impl FromStr for Member {
    type Err = ParseMemberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = MEMBERS.iter().find(|(_, name)| *name == text);
        found.map(|(member, _)| *member).ok_or_else(|| ParseMemberError(text.to_owned()))
    }
}

impl AutoAttack {
    /// The version that leaderboards use.
    pub fn standard() -> Self {
        let attacks = [Member::ApgdCe, Member::ApgdT, Member::FabT, Member::Square];
        Self::new(Version::Standard, &attacks)
    }

    /// More attacks and restarts, about twice the work on a robust model with 10 classes.
    pub fn plus() -> Self {
        let attacks = [
            Member::ApgdCe,
            Member::ApgdDlr,
            Member::Fab,
            Member::Square,
            Member::ApgdT,
            Member::FabT,
        ];
        Self::new(Version::Plus, &attacks)
    }

    /// For models whose output is random.
    pub fn rand() -> Self {
        Self::new(Version::Rand, &[Member::ApgdCe, Member::ApgdDlr])
    }

    /// These attacks in this order.
    pub fn custom(attacks: impl IntoIterator<Item = Member>) -> Self {
        Self::new(Version::Custom, &attacks.into_iter().collect::<Vec<_>>())
    }

    fn new(version: Version, attacks: &[Member]) -> Self {
        Self {
            version,
            attacks: attacks.to_vec(),
            seed: 0,
            steps: 100,
            queries: 5000,
            few_classes: FewClasses::Refuse,
            log: None,
        }
    }

    /// The seed of all random draws (default 0).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Steps of APGD and FAB (default 100). With fewer it is no longer AutoAttack.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Queries of Square (default 5,000). With fewer it is no longer AutoAttack.
    pub fn queries(mut self, queries: usize) -> Self {
        self.queries = queries;
        self
    }

    /// What APGD-DLR and APGD-T do for models with fewer than 3 and 4 classes (default: an error).
    pub fn few_classes(mut self, few_classes: FewClasses) -> Self {
        self.few_classes = few_classes;
        self
    }

    /// Hands a line to `log` after each attack on each batch.
    pub fn log(mut self, log: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.log = Some(Arc::new(log));
        self
    }

    fn ensemble(&self, norm: Norm) -> Ensemble<'static> {
        let sparse = self.sparse(norm);
        let apgd = |apgd: Apgd| {
            let apgd = apgd.steps(self.steps).seed(self.seed).few_classes(self.few_classes);
            let apgd = if sparse { apgd.shrinking_radius() } else { apgd };
            if self.version == Version::Rand { apgd } else { apgd.stop_when_fooled() }
        };
        let restarts = match self.version {
            Version::Plus => 5,
            _ if sparse => 5,
            _ => 1,
        };
        let fab_restarts = if self.version == Version::Plus { 5 } else { 1 };
        let targets = self.targets(norm);
        let mut ensemble = Ensemble::new().log_to(self.log.clone());
        for &member in &self.attacks {
            let name = member.name();
            ensemble = match (member, self.version) {
                (Member::ApgdCe, Version::Rand) => {
                    ensemble.then(name, Eot::new(apgd(Apgd::ce()), 20))
                }
                (Member::ApgdDlr, Version::Rand) => {
                    ensemble.then(name, Eot::new(apgd(Apgd::dlr()), 20))
                }
                (Member::ApgdCe, _) => ensemble.then(name, apgd(Apgd::ce().restarts(restarts))),
                (Member::ApgdDlr, _) => ensemble.then(name, apgd(Apgd::dlr().restarts(restarts))),
                (Member::ApgdT, _) => ensemble.then(name, apgd(Apgd::targeted().targets(targets))),
                (Member::Fab, _) => {
                    let fab = Fab::default().steps(self.steps).restarts(fab_restarts);
                    ensemble.then(name, fab.seed(self.seed))
                }
                (Member::FabT, _) => {
                    ensemble.then(name, Fab::targeted().steps(self.steps).seed(self.seed))
                }
                (Member::Square, _) => {
                    ensemble.then(name, Square::default().queries(self.queries).seed(self.seed))
                }
            };
        }
        ensemble
    }

    /// Whether the official settings for L1 apply.
    fn sparse(&self, norm: Norm) -> bool {
        norm == Norm::L1 && matches!(self.version, Version::Standard | Version::Custom)
    }

    /// Classes that APGD-T aims at.
    fn targets(&self, norm: Norm) -> usize {
        if self.sparse(norm) { 5 } else { 9 }
    }

    /// The official checks of the model's output.
    fn check(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &Batch,
        norm: Norm,
    ) -> Result<Vec<Flag>, AttackError> {
        const PASSES: usize = 5;
        let mut flags = Vec::new();
        let mut outputs = Vec::new();
        let passes = if self.version == Version::Rand { 1 } else { PASSES };
        for _ in 0..passes {
            let logits = oracle.logits(batch, batch.ball.centre())?;
            let right = oracle.fooled(batch, logits.clone())?.iter().filter(|&&f| !f).count();
            outputs.push((read(batch, logits)?, right));
        }
        let normalised = |row: &[f32]| {
            let row: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
            let length = Norm::L2.length(&row) + 1e-10;
            row.into_iter().map(|z| z / length).collect::<Vec<_>>()
        };
        let mut difference: f64 = 0.0;
        for (index, (one, _)) in outputs.iter().enumerate() {
            for (other, _) in &outputs[..index] {
                for (a, b) in one.iter().zip(other.iter()) {
                    let change: Vec<f64> =
                        normalised(a).iter().zip(normalised(b)).map(|(a, b)| a - b).collect();
                    difference = difference.max(Norm::L2.length(&change));
                }
            }
        }
        if difference > 1e-4 || outputs.iter().any(|(_, right)| *right != outputs[0].1) {
            flags.push(Flag::Randomised { difference });
        }

        let rows = &outputs[0].0;
        let probability = |row: &[f32]| {
            let sum: f32 = row.iter().sum();
            row.iter().all(|z| (-1e-5..1.0 + 1e-5).contains(z)) && (sum - 1.0).abs() < 1e-5
        };
        if rows.iter().all(probability) {
            flags.push(Flag::ProbabilityOutput);
        }
        let classes = rows.iter().next().map_or(0, <[f32]>::len);
        let wanted = |member: &Member| match member {
            Member::ApgdT => self.targets(norm),
            Member::FabT => 9,
            Member::ApgdDlr => 2,
            _ => 1,
        };
        let targets = self.attacks.iter().map(wanted).max().unwrap_or(1);
        if targets + 1 > classes {
            flags.push(Flag::TooFewClasses { classes, targets });
        }
        Ok(flags)
    }
}

impl fmt::Debug for AutoAttack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AutoAttack {}", self.describe())
    }
}

impl Attack for AutoAttack {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        let batch = Batch::new(images.clone(), goal.clone(), threat)?;
        batch.require_untargeted("AutoAttack")?;
        let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, images.dtype());
        let mut flags = Vec::new();
        if batch.samples[0] == 0 {
            flags = self.check(&mut oracle, &batch, threat.norm)?;
        }
        let checks = oracle.cost();
        let mut result = self.ensemble(threat.norm).run(victim, images, goal, threat)?;
        for flag in std::mem::take(&mut result.flags) {
            flag.join(&mut flags);
        }
        result.flags = flags;
        result.cost += checks;
        Ok(result)
    }

    fn describe(&self) -> Value {
        description("autoattack", self)
    }
}
