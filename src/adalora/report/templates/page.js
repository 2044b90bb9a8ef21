// A link into a closed section opens it; browsers differ in whether they do so by themselves.
function reveal() {
  const target = document.getElementById(location.hash.slice(1));
  if (!target) return;
  const section = target.closest("details");
  if (section) section.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();
