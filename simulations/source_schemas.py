"""The declared schemas of the built-in sources.

Their constants are public knowledge, stated with its origin; none is computed from the rows of a simulation.
"""

from __future__ import annotations

from tacit.data.schema import CategoricalColumn, Column, NumericColumn, Schema

# Ten measurements of cell nuclei, each as (lowest, highest) of its mean, standard error and worst value: the
# table of summary statistics that is published with the data set (Wolberg, Street, Mangasarian 1995).
_NUCLEI = {
    "radius": ((6.981, 28.11), (0.112, 2.873), (7.93, 36.04)),
    "texture": ((9.71, 39.28), (0.36, 4.885), (12.02, 49.54)),
    "perimeter": ((43.79, 188.5), (0.757, 21.98), (50.41, 251.2)),
    "area": ((143.5, 2501.0), (6.802, 542.2), (185.2, 4254.0)),
    "smoothness": ((0.053, 0.163), (0.002, 0.031), (0.071, 0.223)),
    "compactness": ((0.019, 0.345), (0.002, 0.135), (0.027, 1.058)),
    "concavity": ((0.0, 0.427), (0.0, 0.396), (0.0, 1.252)),
    "concave points": ((0.0, 0.201), (0.0, 0.053), (0.0, 0.291)),
    "symmetry": ((0.106, 0.304), (0.008, 0.079), (0.156, 0.664)),
    "fractal dimension": ((0.05, 0.097), (0.001, 0.03), (0.055, 0.208)),
}


def breast_cancer() -> Schema:
    """Wisconsin diagnostic breast cancer: 30 measurements; class 1 is malignant.

    A range over more than a power of ten is scaled by its logarithm: areas, and the errors of sizes. Otherwise
    nearly all cells would lie at one end of it. Of fractions, log(1 + x) would change little.
    """
    columns: dict[str, Column] = {}
    for position, spelled in enumerate(("mean {}", "{} error", "worst {}")):
        for name, ranges in _NUCLEI.items():
            low, high = ranges[position]
            over_powers_of_ten = high > max(2.0, 10 * low)
            columns[spelled.format(name)] = NumericColumn(
                kind="numeric", range=(low, high), transform="log" if over_powers_of_ten else "none"
            )
    return Schema(label="diagnosis", classes=("benign", "malignant"), columns=columns)


def heart_disease() -> Schema:
    """UCI Heart Disease without slope, ca and thal; class 1 is any disease.

    Centers, scales and ranges are round figures of adult medicine: resting blood pressure about 130 mm Hg,
    serum cholesterol about 220 mg/dl, peak heart rate about 140 a minute, ST depression from 0 to a few
    millimetres.
    """

    def number(center: float, scale: float, low: float, high: float, decimals: int = 0) -> NumericColumn:
        return NumericColumn(kind="numeric", center=center, scale=scale, range=(low, high), decimals=decimals)

    flag = number(0.0, 1.0, 0.0, 1.0)
    columns: dict[str, Column] = {
        "age": number(55.0, 10.0, 20.0, 90.0),
        "sex": flag,
        "cp": CategoricalColumn(kind="categorical", categories=("1", "2", "3", "4")),
        "trestbps": number(130.0, 20.0, 70.0, 220.0),
        "chol": number(220.0, 80.0, 0.0, 600.0),
        "fbs": flag,
        "restecg": CategoricalColumn(kind="categorical", categories=("0", "1", "2")),
        "thalach": number(140.0, 25.0, 50.0, 220.0),
        "exang": flag,
        "oldpeak": number(1.0, 1.0, -3.0, 7.0, decimals=1),
    }
    return Schema(label="target", columns=columns, site="site", missing_rows="drop")


def credit_default() -> Schema:
    """UCI default of credit card clients; class 1 is a default in the next month.

    Categories and the meaning of PAY_* (-1 paid duly, 1 to 9 months late) are the data set's description
    (Yeh and Lien 2009); codes it does not describe are all zeros. Amounts are NT dollars over several powers
    of ten, so they are scaled by their logarithm: credit lines of 10 thousand to 1 million, bills likewise.
    """
    columns: dict[str, Column] = {
        "LIMIT_BAL": NumericColumn(kind="numeric", transform="log", range=(1e4, 1e6), decimals=0),
        "SEX": CategoricalColumn(kind="categorical", categories=("1", "2")),
        "EDUCATION": CategoricalColumn(kind="categorical", categories=("1", "2", "3", "4")),
        "MARRIAGE": CategoricalColumn(kind="categorical", categories=("1", "2", "3")),
        "AGE": NumericColumn(kind="numeric", center=40.0, scale=15.0, range=(18.0, 90.0), decimals=0),
    }
    for month in (0, 2, 3, 4, 5, 6):
        columns[f"PAY_{month}"] = NumericColumn(
            kind="numeric", center=0.0, scale=2.0, range=(-2.0, 9.0), decimals=0
        )
    log = {"kind": "numeric", "transform": "log", "scale": 4.0, "decimals": 0}
    amount = NumericColumn.model_validate({**log, "center": 8.0, "range": (-1e6, 1e6)})
    for month in range(1, 7):
        columns[f"BILL_AMT{month}"] = amount
    payment = NumericColumn.model_validate({**log, "center": 6.0, "range": (0.0, 1e6)})
    for month in range(1, 7):
        columns[f"PAY_AMT{month}"] = payment
    return Schema(label="default_next_month", columns=columns)
