"""Images as a square of codes from a codebook that is learnt with the network."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 and one of 1 x 1, added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)  # type: ignore[no-any-return]


class DiscreteVAE(nn.Module):
    """An image tokenizer trained by a relaxed choice among codes (Gumbel softmax).

    The stage before DALL-E (Ramesh et al. 2021, arXiv 2102.12092). Arguments, defaults and the
    names of the weights are those of dalle-pytorch 1.6.6, except for what is said below.

    Args:
        image_size: Side of the images in pixels, a power of 2.
        num_tokens: Codes in the codebook.
        codebook_dim: Channels of a code.
        num_layers: Halvings: an image has (image_size / 2**num_layers)**2 codes.
        num_resnet_blocks: Residual blocks at the smallest size, in each half of the network.
        hidden_dim: Channels of the convolutions.
        channels: Channels of the images.
        smooth_l1_loss: Smooth L1 instead of the squared error.
        temperature: Of the Gumbel softmax; the lower, the nearer to a hard choice.
        straight_through: Choose one code in the forward pass, with the gradient of the soft choice.
        reinmax: With ``straight_through``, the second-order gradient of arXiv 2304.08612 (its
            algorithm 2).
        kl_div_loss_weight: Weight of the divergence of the choice from the even one.
        normalization: (means, deviations) by channel, applied to the images; None for none.
        kl_reduction: "mean" over positions and samples, so that the weight means the same at any
            batch and image size; "sum" over both, as dalle-pytorch has it.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        image_size: int = 256,
        num_tokens: int = 512,
        codebook_dim: int = 512,
        num_layers: int = 3,
        num_resnet_blocks: int = 0,
        hidden_dim: int = 64,
        channels: int = 3,
        smooth_l1_loss: bool = False,
        temperature: float = 0.9,
        straight_through: bool = False,
        reinmax: bool = False,
        kl_div_loss_weight: float = 0.0,
        normalization: Normalization | None = ((0.5, 0.5, 0.5, 0), (0.5, 0.5, 0.5, 1)),
        kl_reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if image_size < 1 or not math.log2(image_size).is_integer():
            raise ValueError(f"image_size must be a power of 2, got {image_size}")
        if num_layers < 1 or 2**num_layers > image_size:
            raise ValueError(
                f"num_layers must be 1 to {int(math.log2(image_size))} for images of "
                f"{image_size} pixels, got {num_layers}"
            )
        if kl_reduction not in ("mean", "sum"):
            raise ValueError(f"kl_reduction must be 'mean' or 'sum', got {kl_reduction!r}")
        self.settings: dict[str, Any] = {
            "image_size": image_size,
            "num_tokens": num_tokens,
            "codebook_dim": codebook_dim,
            "num_layers": num_layers,
            "num_resnet_blocks": num_resnet_blocks,
            "hidden_dim": hidden_dim,
            "channels": channels,
            "smooth_l1_loss": smooth_l1_loss,
            "temperature": temperature,
            "straight_through": straight_through,
            "reinmax": reinmax,
            "kl_div_loss_weight": kl_div_loss_weight,
            "normalization": normalization,
            "kl_reduction": kl_reduction,
        }
        self.image_size, self.num_tokens, self.num_layers = image_size, num_tokens, num_layers
        self.channels, self.temperature = channels, temperature
        self.straight_through, self.reinmax = straight_through, reinmax
        self.kl_div_loss_weight, self.kl_reduction = kl_div_loss_weight, kl_reduction
        self.loss_fn = F.smooth_l1_loss if smooth_l1_loss else F.mse_loss
        self.normalization: Normalization | None = None
        if normalization is not None:
            means, deviations = (tuple(part[:channels]) for part in normalization)
            if not len(means) == len(deviations) == channels:
                raise ValueError(
                    f"normalization must have {channels} means and deviations, one per channel; "
                    f"got {len(means)} and {len(deviations)}"
                )
            self.normalization = (means, deviations)

        self.codebook = nn.Embedding(num_tokens, codebook_dim)
        encoder: list[nn.Module] = []
        for i in range(num_layers):
            down = nn.Conv2d(channels if i == 0 else hidden_dim, hidden_dim, 4, stride=2, padding=1)
            encoder.append(nn.Sequential(down, nn.ReLU()))
        encoder += [ResidualBlock(hidden_dim) for _ in range(num_resnet_blocks)]
        encoder.append(nn.Conv2d(hidden_dim, num_tokens, 1))

        decoder: list[nn.Module] = []
        width = codebook_dim
        if num_resnet_blocks > 0:
            decoder.append(nn.Conv2d(codebook_dim, hidden_dim, 1))
            decoder += [ResidualBlock(hidden_dim) for _ in range(num_resnet_blocks)]
            width = hidden_dim
        for i in range(num_layers):
            up = nn.ConvTranspose2d(
                width if i == 0 else hidden_dim, hidden_dim, 4, stride=2, padding=1
            )
            decoder.append(nn.Sequential(up, nn.ReLU()))
        decoder.append(nn.Conv2d(hidden_dim, channels, 1))
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def normalize(self, images: Tensor) -> Tensor:
        """Return the images, [B, C, S, S], as the network takes them."""
        if self.normalization is None:
            return images
        means, deviations = (images.new_tensor(p).view(-1, 1, 1) for p in self.normalization)
        return (images - means) / deviations

    def denormalize(self, images: Tensor) -> Tensor:
        """Return what the network gives, [B, C, S, S], as images in [0, 1]."""
        if self.normalization is not None:
            means, deviations = (images.new_tensor(p).view(-1, 1, 1) for p in self.normalization)
            images = images * deviations + means
        return images.clamp(0, 1)

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Return the likeliest codes of images, int64 [B, n], row by row."""
        logits: Tensor = self(images, return_logits=True)
        return logits.argmax(dim=1).flatten(1)

    def decode(self, img_seq: Tensor) -> Tensor:
        """Return the images of codes: float [B, C, S, S] in [0, 1].

        Args:
            img_seq: Integers [B, n], n a square: codes row by row.

        Raises:
            ValueError: If n is no square.
        """
        side = math.isqrt(img_seq.shape[1])
        if side * side != img_seq.shape[1]:
            raise ValueError(f"codes must make a square, got {img_seq.shape[1]} of them")
        codes = self.codebook(img_seq).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.denormalize(self.decoder(codes))

    def forward(
        self,
        img: Tensor,
        return_loss: bool = False,
        return_recons: bool = False,
        return_logits: bool = False,
        temp: float | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return reconstructions, the loss, both, or the logits of the codes.

        Args:
            img: Float [B, C, S, S] in [0, 1].
            return_loss: Give the loss, a scalar: the error of the normalised image, and the
                divergence by its weight.
            return_recons: With ``return_loss``, give (loss, reconstructions).
            return_logits: Give float [B, num_tokens, S / 2**L, S / 2**L] and nothing else.
            temp: Temperature of this pass instead of the model's.

        Returns:
            Reconstructions are images in [0, 1], [B, C, S, S], without a gradient beside a loss.

        Raises:
            ValueError: If the images have another size.
        """
        size = (self.channels, self.image_size, self.image_size)
        if img.ndim != 4 or img.shape[1:] != size:
            raise ValueError(f"images must be [B, {', '.join(map(str, size))}], got {[*img.shape]}")
        target = self.normalize(img)
        logits: Tensor = self.encoder(target)
        if return_logits:
            return logits
        temperature = self.temperature if temp is None else temp
        choice = F.gumbel_softmax(logits, tau=temperature, dim=1, hard=self.straight_through)
        if self.straight_through and self.reinmax:
            choice = _reinmax(choice, logits, temperature)
        codes = torch.einsum("bnhw,nd->bdhw", choice, self.codebook.weight)
        out: Tensor = self.decoder(codes)
        if not return_loss:
            return self.denormalize(out)
        loss = self.loss_fn(target, out)
        if self.kl_div_loss_weight != 0:
            loss = loss + self.kl_div_loss_weight * self.divergence(logits)
        return (loss, self.denormalize(out.detach())) if return_recons else loss

    def divergence(self, logits: Tensor) -> Tensor:
        """Return KL(choice || even choice) in nats, a scalar, of [B, num_tokens, h, w]."""
        log_choice = logits.log_softmax(dim=1)
        each = (log_choice.exp() * (log_choice + math.log(self.num_tokens))).sum(dim=1)
        return each.sum() if self.kl_reduction == "sum" else each.mean()


def _reinmax(choice: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return the hard choice, [B, n, h, w], with ReinMax's gradient (arXiv 2304.08612)."""
    choice = choice.detach()
    even = logits.softmax(dim=1)
    mid = (choice + (logits / temperature).softmax(dim=1)) / 2
    mid = ((mid.clamp(min=1e-20).log() - logits).detach() + logits).softmax(dim=1)
    slope = 2 * mid - even / 2
    return slope - slope.detach() + choice
