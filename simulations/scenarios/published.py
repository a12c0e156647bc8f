"""The scenarios on published data: nothing is generated, and what is compared with was published."""

from __future__ import annotations

from simulations.scenarios.story import IDEAL, Story

CI = ("training.rounds=6", "checkpoints.keep=1", IDEAL)

HEART_DISEASE = Story(
    name="heart_disease",
    field="healthcare",
    title="What does a hospital with 30 patients to train on gain from three others, at epsilon 1?",
    data="published: UCI Heart Disease, 740 patients; one row is one patient",
    sites="the four hospitals that collected the data, 30 to 199 patients to train on, 36 to 93 % of them ill",
    measured="accuracy, the mean over the four hospitals",
    truth="FLamby (du Terrail et al. 2022) publishes pooled 0.735, FedAvg 0.685 and, at epsilon 1, 0.685",
    metric="accuracy",
    ci=CI,
)

BREAST_CANCER = Story(
    name="breast_cancer",
    field="healthcare",
    title="Is a tumour benign or malignant, when ten clinics see few patients each?",
    data="published: Wisconsin diagnostic breast cancer, 569 patients, embedded in scikit-learn",
    sites="ten invented clinics, each class divided by Dirichlet shares (alpha 0.5)",
    measured="AUROC on all held-out patients",
    truth="pooled training without privacy; Street et al. (1993) report 97 % accuracy in cross-validation",
    metric="auroc",
    ci=CI,
)

CREDIT_DEFAULT = Story(
    name="credit_default",
    field="finance",
    title="Who will miss next month's payment, and how close do twenty banks come to one with all the data?",
    data="published: UCI default of credit card clients, Taiwan 2005, 30 000 people",
    sites="twenty invented banks, each class divided by Dirichlet shares (alpha 0.5)",
    measured="AUROC on all held-out card holders",
    truth="pooled training without privacy on the same preparation; the bar is 0.02 below it",
    metric="auroc",
    ci=CI,
)
