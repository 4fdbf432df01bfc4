"""What people call clients: their numbers, and the sites or the values of a column from which their images come."""

from fedssl.core.arrays import unique_pairs
from fedssl.data.federation import Federation
from fedssl.data.partitions.base import Partition
from fedssl.data.partitions.natural import Natural


def client_names(federation: Federation, partition: Partition) -> list[str]:
    """Return the name of each client: its number, and also its site's name or its values of a `natural` partition's column.

    Args:
        federation: The drawn federation.
        partition: The partition that dealt the images.
    """
    numbers = [str(client) for client in range(federation.num_clients)]
    if federation.sites:
        return [
            f"{number} ({site})" for number, site in zip(numbers, federation.sites, strict=True)
        ]
    if not isinstance(partition, Natural):
        return numbers
    dealt = federation.owner >= 0
    codes = federation.data.train.columns[partition.column][dealt]
    pairs, _ = unique_pairs(federation.owner[dealt], codes)
    values: list[list[str]] = [[] for _ in numbers]
    for client, code in pairs.tolist():
        values[client].append(federation.data.column_values[partition.column][code])
    return [
        f"{number} ({own[0]}{f' +{len(own) - 1}' if len(own) > 1 else ''})" if own else number
        for number, own in zip(numbers, values, strict=True)
    ]
